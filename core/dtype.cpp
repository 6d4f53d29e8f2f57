#include "norma/core/dtype.h"

#include <array>
#include <utility>

#include "norma/core/error.h"

namespace norma {
namespace {
constexpr std::array<std::pair<DType, std::string_view>, 7> kNames{{{float32, "float32"},
                                                                    {float64, "float64"},
                                                                    {bfloat16, "bfloat16"},
                                                                    {float16, "float16"},
                                                                    {int32, "int32"},
                                                                    {int64, "int64"},
                                                                    {bool_, "bool"}}};
}  // namespace

std::string_view to_string(DType dtype) {
  for (const auto& [value, name] : kNames)
    if (value == dtype) return name;
  return "unknown";
}

DType dtype_from_string(std::string_view name) {
  for (const auto& [value, known] : kNames)
    if (known == name) return value;
  throw DTypeError(
      "dtype: must be float32, float64, bfloat16, float16, int32, int64 or bool, but is {}", name);
}

void detail::throw_not_floating(DType dtype) {
  throw DTypeError("a floating dtype is needed, but came {}", to_string(dtype));
}
void detail::throw_not_an_index(DType dtype) {
  throw DTypeError("int32 or int64 is needed, but came {}", to_string(dtype));
}
void detail::throw_unknown(DType dtype) {
  throw DTypeError("unknown dtype {}", static_cast<int>(dtype));
}

}  // namespace norma
