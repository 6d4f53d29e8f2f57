#include "norma/core/tensor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "testing/compare.h"

namespace norma {
namespace {

using ::testing::ElementsAre;

/// A (rows, cols) tensor of 0, 1, 2, … in that dtype.
Tensor counting(int64_t rows, int64_t cols, DType dtype = float32) {
  return detail::raw_view(arange(rows * cols, dtype), {rows, cols}, {cols, 1}, 0);
}
Tensor transposed(const Tensor& t) {
  return detail::raw_view(t, {t.size(1), t.size(0)}, {t.strides()[1], t.strides()[0]}, t.offset());
}
template <class F>
std::string message_of(const F& f) {
  try {
    f();
  } catch (const Error& error) {
    return error.what();
  }
  return "no exception";
}

TEST(Tensor, CopyingAHandleSharesTheValues) {
  Tensor a = zeros({2, 2});
  Tensor b = a;
  b.fill_(3);
  EXPECT_THAT(a.to_vector<float>(), ElementsAre(3, 3, 3, 3));
}

TEST(Tensor, EveryViewSharesTheVersion) {
  Tensor a = zeros({2, 3});
  Tensor view = transposed(a);
  const uint32_t before = a.storage()->version();
  view.fill_(1);
  EXPECT_EQ(a.storage()->version(), before + 1);
}

TEST(Tensor, StridedViewReadsInItsOwnOrder) {
  EXPECT_THAT(transposed(counting(2, 3)).to_vector<float>(), ElementsAre(0, 3, 1, 4, 2, 5));
}

TEST(Tensor, EveryDTypeConvertsToEveryOther) {
  const DType all[] = {float32, float64, bfloat16, float16, int32, int64, bool_};
  for (DType from : all) {
    for (DType to : all) {
      SCOPED_TRACE(format("{} to {}", to_string(from), to_string(to)));
      Tensor target = empty({3}, to);
      target.copy_(tensor({0, 1, 2}, from));
      const double two = from == bool_ || to == bool_ ? 1 : 2;
      EXPECT_THAT(target.to_vector<double>(), ElementsAre(0, 1, two));
    }
  }
}

TEST(Tensor, CopyBroadcastsTheSource) {
  Tensor target = empty({2, 3});
  target.copy_(tensor({1, 2, 3}));
  EXPECT_THAT(target.to_vector<float>(), ElementsAre(1, 2, 3, 1, 2, 3));
}

TEST(Tensor, LargeStridedCopyEqualsElementByElement) {
  const Tensor source = transposed(counting(301, 257, int32));  // more than one task
  const std::vector<int32_t> values = source.to_vector<int32_t>();
  for (int64_t r = 0; r < 257; ++r)
    for (int64_t c = 0; c < 301; ++c)
      ASSERT_EQ(values[static_cast<size_t>(r * 301 + c)], c * 257 + r);
}

TEST(Tensor, AddIntoSumsThroughStrides) {
  Tensor a = counting(2, 3);
  transposed(a).add_(transposed(counting(2, 3)));
  EXPECT_THAT(a.to_vector<float>(), ElementsAre(0, 2, 4, 6, 8, 10));
}

TEST(Tensor, EmptyTensorsHaveNoElementsAndNoTrouble) {
  zeros({3, 0}).add_(zeros({3, 0}));
  Tensor none_at_all = zeros({0, 3});
  none_at_all.add_(ones({0, 3}));
  EXPECT_EQ(none_at_all.numel(), 0);
  EXPECT_TRUE(none_at_all.is_dense());
  EXPECT_EQ(to_string(none_at_all), "[]");
}

TEST(Tensor, RowsAreEvenWhereOneStrideReachesThemAll) {
  const Tensor t = counting(4, 6);
  const Tensor left_half = detail::raw_view(t, {4, 3}, {6, 1}, 0);
  EXPECT_TRUE(has_even_rows(left_half));
  EXPECT_EQ(ConstRows(left_half).row_stride, 6);
  EXPECT_FALSE(has_even_rows(transposed(t)));
  const Tensor uneven = detail::raw_view(counting(8, 3), {2, 2, 3}, {12, 3, 1}, 0);
  EXPECT_FALSE(has_even_rows(uneven));
  EXPECT_EQ(even_rows(uneven).to_vector<float>(), uneven.to_vector<float>());
}

TEST(Tensor, FactoriesGiveTheirValues) {
  EXPECT_THAT(linspace(0, 1, 3).to_vector<float>(), ElementsAre(0, 0.5F, 1));
  EXPECT_THAT(eye(2).to_vector<float>(), ElementsAre(1, 0, 0, 1));
  EXPECT_THAT(arange(3).to_vector<int64_t>(), ElementsAre(0, 1, 2));
  EXPECT_EQ(scalar(2.5).item(), 2.5);
}

TEST(Tensor, PrintsLikeNumPy) {
  EXPECT_EQ(to_string(tensor({1, 2.5, -3})), "[    1. 2.5000    -3.]");
  EXPECT_EQ(to_string(counting(2, 2, int32)), "[[0 1]\n [2 3]]");
  EXPECT_EQ(format("{:.1f}", tensor({1, 2})), "[1.0 2.0]");
  EXPECT_EQ(to_string(scalar(7)), "7.");
  EXPECT_EQ(to_string(tensor({0, 1}, bool_)), "[False  True]");
  EXPECT_EQ(to_string(arange(1001)), "[   0    1    2 ...  998  999 1000]");
  EXPECT_EQ(to_string(arange(1001).reshape({7, 143})),
            "[[   0    1    2 ...  140  141  142]\n [ 143  144  145 ...  283  284  285]\n"
            " [ 286  287  288 ...  426  427  428]\n ...\n [ 572  573  574 ...  712  713  714]\n"
            " [ 715  716  717 ...  855  856  857]\n [ 858  859  860 ...  998  999 1000]]");
}

TEST(SameBits, TellsIntegersApartThatAreOneDouble) {
  const int64_t values[] = {(int64_t{1} << 53) + 1, int64_t{1} << 53};
  const Tensor t = from_span(std::span<const int64_t>(values));
  EXPECT_FALSE(testing::same_bits(t.select(0, 0), t.select(0, 1)));
  EXPECT_TRUE(testing::same_bits(t, t.clone()));
}

TEST(Tensor, PrintsAllDigitsOfIntegersThatNoDoubleHolds) {
  const int64_t value = (int64_t{1} << 53) + 1;
  EXPECT_EQ(to_string(from_span(std::span<const int64_t>(&value, 1))), "[9007199254740993]");
}

TEST(Tensor, ItemIsExactWhereNoDoubleHoldsIt) {
  const int64_t odd = (int64_t{1} << 53) + 1;
  const Tensor t = from_span(std::span<const int64_t>(&odd, 1));
  EXPECT_EQ(t.item<int64_t>(), odd);
  EXPECT_EQ(scalar(2.5).item<int64_t>(), 2);
}

TEST(Device, NamesAreReadWhole) {
  EXPECT_EQ(device_from_string("cpu"), cpu);
  EXPECT_EQ(message_of([] { device_from_string("gpu"); }),
            "device: must be cpu, cuda, cuda:N or best, but is gpu");
  for (const char* n : {"", "x", "1x", "-1", "256"})
    EXPECT_EQ(message_of([&] { device_from_string(std::string("cuda:") + n); }),
              format("device: N of cuda:N must be 0 to 255, but is {}", n));
  EXPECT_THAT(message_of([] { device_from_string("cuda:200"); }),
              ::testing::StartsWith("cuda:200: must be"));
}

TEST(Tensor, MistakesAreNamed) {
  EXPECT_EQ(message_of([] { ones({2}).item(); }),
            "item: the tensor must have one element, but has shape (2,)");
  EXPECT_EQ(message_of([] { ones({2}).span<double>(); }),
            "span: the tensor must be float64, but is float32");
  EXPECT_EQ(message_of([] {
              ones({2, 3}).copy_(ones({2}));
            }),
            "copy_: shapes must broadcast, but (2,) and (2, 3) differ in dimension 1");
  EXPECT_EQ(message_of([] {
              ones({3}).copy_(ones({2, 3}));
            }),
            "copy_: source must broadcast to (3,), but is (2, 3)");
  EXPECT_EQ(message_of([] { ones({2}).add_(ones({2}, float64)); }),
            "add_: other must be float32, but is float64; convert it first");
  EXPECT_EQ(message_of([] { zeros({1}).expand({3}).add_(ones({3})); }),
            "add_: the elements of the target must lie apart, but with shape (3,) it has strides "
            "(0,); clone() it first");
  EXPECT_EQ(message_of([] {
              empty({2, -1});
            }),
            "empty: sizes must be 0 or more, but the shape is (2, -1)");
  const int64_t large = int64_t{1} << 32;  // squared, no 64 bits hold it
  EXPECT_EQ(message_of([&] {
              empty({large, large});
            }),
            "empty: a tensor must have less than 2^63 bytes, but the shape is (4294967296, "
            "4294967296) of float32");
  EXPECT_EQ(message_of([&] { empty({int64_t{1} << 60}, float64); }),
            "empty: a tensor must have less than 2^63 bytes, but the shape is "
            "(1152921504606846976,) of float64");
  EXPECT_EQ(message_of([] { (void)Tensor().shape(); }),
            "tensor: must hold values, but is empty (default-constructed or moved from)");
}

}  // namespace
}  // namespace norma
