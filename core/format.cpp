#include "norma/core/format.h"

#define FMT_HEADER_ONLY 1  // so that a consumer links nothing
#include <fmt/args.h>
#include <fmt/format.h>

#include <cstdio>

namespace norma::detail {
namespace {
struct CustomArg {
  const FormatArg* arg;
};
}  // namespace
}  // namespace norma::detail

/// Hands the text after the colon to the type's own to_string.
template <>
struct fmt::formatter<norma::detail::CustomArg> {
  std::string_view spec;

  constexpr auto parse(format_parse_context& context) {
    const char* end = context.begin();
    while (end != context.end() && *end != '}') ++end;
    spec = std::string_view(context.begin(), static_cast<size_t>(end - context.begin()));
    return end;
  }
  template <class Context>
  auto format(const norma::detail::CustomArg& custom, Context& context) const {
    const std::string text = custom.arg->custom(custom.arg->object, spec);
    return std::copy(text.begin(), text.end(), context.out());
  }
};

namespace norma::detail {

std::string format_args(std::string_view format, std::span<const FormatArg> args) {
  fmt::dynamic_format_arg_store<fmt::format_context> store;
  for (const FormatArg& arg : args) {
    switch (arg.kind) {
      case FormatArg::Kind::integer:
        store.push_back(arg.integer);
        break;
      case FormatArg::Kind::natural:
        store.push_back(arg.natural);
        break;
      case FormatArg::Kind::real:
        store.push_back(arg.real);
        break;
      case FormatArg::Kind::boolean:
        store.push_back(arg.natural != 0);
        break;
      case FormatArg::Kind::character:
        store.push_back(static_cast<char>(arg.integer));
        break;
      case FormatArg::Kind::text:
        store.push_back(arg.text);
        break;
      case FormatArg::Kind::custom:
        store.push_back(CustomArg{&arg});
        break;
    }
  }
  return fmt::vformat(fmt::string_view(format.data(), format.size()), store);
}

void print_text(std::string_view text) { std::fwrite(text.data(), 1, text.size(), stdout); }

}  // namespace norma::detail
