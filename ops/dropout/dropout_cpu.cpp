#include "norma/core/tensor.h"
#include "norma/ops/dropout/kernels.h"
#include "norma/ops/elementwise/operands_cpu.h"

namespace norma {

void run(Cpu, const DropoutArgs& k) {
  // A block begins with a whole group of four elements, which share one call of the generator.
  const Split blocks = split(k.x.n, detail::kPieceGrain);
  const float p = static_cast<float>(k.p);
  visit_floating(k.x.dtype, [&]<class T>() {
    using Acc = stats_t<T>;
    const Acc scale = static_cast<Acc>(1 / (1 - k.p));
    parallel_for(blocks.blocks, [&](int64_t b) {
      for (int64_t i = blocks.begin(b); i < blocks.end(b); i += 4) {
        const auto words = random_words(k.key, static_cast<uint64_t>(i) / 4);
        for (int64_t j = 0; j < 4 && i + j < blocks.end(b); ++j) {
          const float uniform = static_cast<float>(words[static_cast<size_t>(j)] >> 8) * 0x1p-24F;
          const Acc x = static_cast<Acc>(k.x.at<T>(i + j));
          k.y.at<T>(i + j) = static_cast<T>(uniform < p ? Acc(0) : x * scale);
        }
      }
    });
  });
}

}  // namespace norma
