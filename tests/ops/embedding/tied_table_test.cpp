#include <optional>
#include <vector>

#include "norma/core/autograd.h"
#include "norma/core/random.h"
#include "norma/ops/elementwise/binary.h"
#include "norma/ops/embedding/embedding.h"
#include "norma/ops/matmul/matmul.h"
#include "testing/compare.h"

namespace norma {
namespace {

// On a GPU in place; elsewhere the engine adds two tables.
TEST(TiedTable, RowsAreAddedToWhatTheProductLeft) {
  for (const int64_t rows : {7, 600})
    for (const int64_t places : {40, 5000}) {
      SCOPED_TRACE(rows * places);
      const Tensor index = randint(0, rows, {places}, int32), dy = randn({places, 130});
      const Tensor x = randn({9, 130}), dlogits = randn({9, rows});
      const Tensor table = randn({rows, 130}).requires_grad_();
      const auto gradient = [&](bool embeds, bool projects) {
        std::vector<Tensor> outputs;
        std::vector<std::optional<Tensor>> slopes;
        if (embeds) outputs.push_back(embedding(index, table)), slopes.push_back(dy);
        if (projects) outputs.push_back(linear(x, table)), slopes.push_back(dlogits);
        return grad(outputs, {table}, slopes)[0];
      };
      EXPECT_SAME_BITS(gradient(true, true), gradient(false, true) + gradient(true, false));
    }
}

}  // namespace
}  // namespace norma
