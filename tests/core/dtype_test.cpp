#include "norma/core/dtype.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "norma/core/error.h"

namespace norma {
namespace {

TEST(Float16, EveryBitPatternSurvivesTheRoundTrip) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    Float16 half;
    half.bits = static_cast<uint16_t>(bits);
    const float value = half;
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(static_cast<float>(Float16(value)))) << bits;
    } else {
      EXPECT_EQ(Float16(value).bits, bits);
    }
  }
}

#if !defined(__clang__) || __clang_major__ >= 15  // clang 14 has no _Float16 without AVX-512 FP16
TEST(Float16, AgreesWithTheProcessorOnRandomBits) {
  uint32_t u = 12345;
  for (int i = 0; i < 1'000'000; ++i) {
    u = u * 1664525U + 1013904223U;
    float value = 0;
    std::memcpy(&value, &u, sizeof value);
    if (std::isnan(value)) continue;
    EXPECT_EQ(static_cast<float>(Float16(value)), static_cast<float>(static_cast<_Float16>(value)))
        << value;
  }
}
#endif

TEST(BFloat16, RoundsToNearestAndTiesToEven) {
  EXPECT_EQ(static_cast<float>(BFloat16(1.0F + 0x1p-8F)), 1.0F);                // tie, even below
  EXPECT_EQ(static_cast<float>(BFloat16(1.0F + 3 * 0x1p-8F)), 1.0F + 0x1p-6F);  // tie, even above
  EXPECT_EQ(static_cast<float>(BFloat16(1.0F + 0x1.2p-8F)), 1.0F + 0x1p-7F);    // above the tie
  EXPECT_EQ(static_cast<float>(BFloat16(0x1.ffp127F)), std::numeric_limits<float>::infinity());
}

TEST(BFloat16, NanStaysNanWhateverItsPayload) {
  EXPECT_TRUE(std::isnan(static_cast<float>(BFloat16(std::bit_cast<float>(0x7f800001U)))));
}

TEST(DType, NamesReadBack) {
  for (DType dtype : {float32, float64, bfloat16, float16, int32, int64, bool_}) {
    EXPECT_EQ(dtype_from_string(to_string(dtype)), dtype);
    visit_all(dtype, [&]<class T>() {
      EXPECT_EQ(dtype_of<T>, dtype);
      EXPECT_EQ(size_of(dtype), static_cast<int64_t>(sizeof(T)));
    });
  }
}

TEST(DType, UnknownNameListsTheKnownOnes) {
  try {
    dtype_from_string("float8");
    FAIL() << "no exception";
  } catch (const DTypeError& error) {
    EXPECT_STREQ(error.what(),
                 "dtype: must be float32, float64, bfloat16, float16, int32, int64 or bool, but "
                 "is float8");
  }
}

}  // namespace
}  // namespace norma
