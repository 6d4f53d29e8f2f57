#include "norma/core/shape.h"

#include <gtest/gtest.h>

#include "norma/core/error.h"

namespace norma {
namespace {

TEST(Shape, PrintsLikeATuple) {
  EXPECT_EQ(format("{} {} {}", Shape{}, Shape{8}, Shape{2, 8}), "() (8,) (2, 8)");
}

TEST(Shape, DenseStridesStepOverTheDimensionsBehind) {
  EXPECT_EQ(dense_strides({2, 3, 4}), (Shape{12, 4, 1}));
  EXPECT_EQ(dense_strides({}), Shape{});
}

TEST(Shape, BroadcastStretchesOnesFromTheBack) {
  EXPECT_EQ(broadcast_shapes("add", {4, 1, 3}, {2, 1}), (Shape{4, 2, 3}));
  EXPECT_EQ(broadcast_shapes("add", {}, {5}), Shape{5});
  EXPECT_EQ(broadcast_shapes("add", {0, 1}, {1, 3}), (Shape{0, 3}));
}

TEST(Shape, WhatDoesNotBroadcastIsNamed) {
  try {
    broadcast_shapes("add", {2, 3}, {2, 4});
    FAIL() << "no exception";
  } catch (const ShapeError& error) {
    EXPECT_STREQ(error.what(),
                 "add: shapes must broadcast, but (2, 3) and (2, 4) differ in dimension 1");
  }
}

TEST(Shape, NegativeDimensionsCountFromTheBack) {
  EXPECT_EQ(wrap_dim("sum", -1, 3), 2);
  EXPECT_EQ(wrap_dim("sum", 0, 3), 0);
  EXPECT_THROW(wrap_dim("sum", 3, 3), ShapeError);
  EXPECT_THROW(wrap_dim("sum", -4, 3), ShapeError);
}

TEST(Shape, InsertAndEraseAreInverse) {
  Shape shape{2, 3};
  shape.insert(1, 7);
  EXPECT_EQ(shape, (Shape{2, 7, 3}));
  shape.erase(1);
  EXPECT_EQ(shape, (Shape{2, 3}));
}

TEST(Shape, NinthDimensionIsRefused) { EXPECT_THROW(Shape::filled(9, 1), ShapeError); }

}  // namespace
}  // namespace norma
