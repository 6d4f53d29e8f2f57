#include "norma/ops/cross_entropy/cross_entropy.h"

#include "norma/core/dispatch.h"
#include "norma/ops/cross_entropy/kernels.h"
#include "norma/ops/elementwise/binary.h"
#include "norma/ops/elementwise/compare.h"
#include "norma/ops/elementwise/unary.h"
#include "norma/ops/reduce/reduce.h"
#include "norma/ops/softmax/softmax.h"

namespace norma {
namespace {

/// 1 at each row's target, (…, V); none where it is ignored.
Tensor onehot(const Tensor& targets, int64_t classes, DType dtype) {
  const Tensor t = targets.to(int64).unsqueeze(-1);
  return equal(t, arange(classes, int64, targets.device())).to(dtype);
}
Tensor counted(const Tensor& targets, int64_t ignore_index, DType dtype) {
  return not_equal(targets.to(int64), static_cast<double>(ignore_index)).to(dtype);
}

}  // namespace

void CrossEntropy::check(const Tensor& logits, const Tensor& targets, const Options& o) {
  if (!is_floating(logits.dtype()))
    throw DTypeError("{}: logits must be floating, but are {}", name, to_string(logits.dtype()));
  if (targets.dtype() != int32 && targets.dtype() != int64)
    throw DTypeError("{}: targets must be int32 or int64 class indices, but are {}", name,
                     to_string(targets.dtype()));
  Shape expected = logits.shape();
  if (expected.dim() > 0) expected.erase(expected.dim() - 1);
  if (logits.dim() == 0 || logits.shape().back() == 0 || targets.shape() != expected)
    throw ShapeError("{}: targets must be {}, the logits {} without their classes, but are {}",
                     name, expected, logits.shape(), targets.shape());
  if (!(o.label_smoothing >= 0 && o.label_smoothing <= 1))
    throw ValueError("{}: label_smoothing must be from 0 to 1, but is {}", name, o.label_smoothing);
}

CrossEntropyResult CrossEntropy::define(const Tensor& logits, const Tensor& targets,
                                        const Options& o) {
  const int64_t classes = logits.shape().back();
  const Tensor u = logits.to(stats_dtype(logits.dtype()));
  const Tensor lse = logsumexp(u, -1), chosen = (u * onehot(targets, classes, u.dtype())).sum(-1);
  const Tensor losses = lse - chosen * (1 - o.label_smoothing) - u.mean(-1) * o.label_smoothing;
  return {losses * counted(targets, o.ignore_index, u.dtype()), lse};
}

namespace {
CrossEntropyResult losses_of(const Tensor& logits, const Tensor& targets,
                             const CrossEntropyOptions& o) {
  const DType dtype = stats_dtype(logits.dtype());
  CrossEntropyResult result{empty(targets.shape(), dtype, logits.device()),
                            empty(targets.shape(), dtype, logits.device())};
  const Tensor rows = even_rows(logits);
  dispatch(logits.device(), CrossEntropyForwardArgs{.logits = rows,
                                                    .targets = targets,
                                                    .ignore_index = o.ignore_index,
                                                    .label_smoothing = o.label_smoothing,
                                                    .losses = result.losses,
                                                    .lse = result.lse.value});
  return result;
}
/// The logits' memory in a tensor of its own, without their history.
Tensor memory_of(const Tensor& logits) {
  return detail::raw_view(logits, logits.shape(), logits.strides(), logits.offset());
}
Tensor gradient(const Tensor& dlosses, const ConstVec& share, const Tensor& logits,
                const Tensor& targets, const Tensor& lse, const CrossEntropyBackwardOptions& o) {
  const Tensor rows = even_rows(logits);
  const bool apart = logits.dim() > 1 && has_even_rows(logits) &&
                     logits.strides()[logits.dim() - 2] >= logits.size(-1);
  // What was saved goes when backward returns.
  Tensor dlogits =
      o.in_place && (apart || logits.is_dense()) ? memory_of(logits) : empty_like(logits);
  const Tensor d = detail::dense(dlosses), t = detail::dense(targets);
  dispatch(logits.device(), CrossEntropyBackwardArgs{.dlosses = d,
                                                     .share = share,
                                                     .logits = rows,
                                                     .targets = t,
                                                     .lse = lse,
                                                     .ignore_index = o.ignore_index,
                                                     .label_smoothing = o.label_smoothing,
                                                     .dlogits = dlogits});
  return dlogits;
}
CrossEntropyBackwardOptions backward_options(const Context& ctx) {
  const CrossEntropyOptions& o = ctx.options();
  return {.ignore_index = o.ignore_index,
          .label_smoothing = o.label_smoothing,
          .in_place = ctx.is_last_use(0)};
}
}  // namespace

CrossEntropyResult CrossEntropy::forward(Context& ctx, const Tensor& logits, const Tensor& targets,
                                         const Options& o) {
  const CrossEntropyResult result = losses_of(logits, detail::dense(targets), o);
  ctx.save(logits, targets);
  ctx.save_constant(result.lse.value);
  return result;
}
Tensor CrossEntropy::backward(Context& ctx, const std::optional<Tensor>& dlosses,
                              const std::optional<Tensor>&) {
  return apply<CrossEntropyBackward>(*dlosses, ctx.saved(0), ctx.saved(1), ctx.saved(2),
                                     backward_options(ctx));
}

Tensor CrossEntropyBackward::define(const Tensor& dlosses, const Tensor& logits,
                                    const Tensor& targets, const Tensor&, const Options& o) {
  const int64_t classes = logits.shape().back();
  const Tensor u = logits.to(dlosses.dtype());
  const Tensor p = softmax(u, -1) - onehot(targets, classes, u.dtype()) * (1 - o.label_smoothing) -
                   o.label_smoothing / static_cast<double>(classes);
  const Tensor scale = dlosses * counted(targets, o.ignore_index, u.dtype());
  return (p * scale.unsqueeze(-1)).to(logits.dtype());
}
Tensor CrossEntropyBackward::forward(Context&, const Tensor& dlosses, const Tensor& logits,
                                     const Tensor& targets, const Tensor& lse, const Options& o) {
  return gradient(dlosses, {}, logits, targets, lse, o);
}

void MeanCrossEntropy::check(const Tensor& logits, const Tensor& targets, const Options& o) {
  CrossEntropy::check(logits, targets, o);
}
MeanCrossEntropyResult MeanCrossEntropy::define(const Tensor& logits, const Tensor& targets,
                                                const Options& o) {
  const CrossEntropyResult each = CrossEntropy::define(logits, targets, o);
  const Tensor count = counted(targets, o.ignore_index, each.losses.dtype()).sum();
  const Tensor share = reciprocal(maximum(count, 1));
  return {each.losses.sum() * share, each.lse, share};
}
namespace {
bool takes_gradient(const Tensor& logits) {
  return logits.device().is_cuda() && logits.dtype() == bfloat16 && logits.is_dense() &&
         has_cross_entropy_in_place(logits.size(-1)) && logits.offset() % 8 == 0;
}
/// What MeanCrossEntropy::forward gives, with the gradient of its loss where the logits were.
MeanCrossEntropyResult with_gradient(Context& ctx, const Tensor& logits, const Tensor& targets,
                                     const CrossEntropyOptions& o) {
  const auto result_of = [&](const Shape& shape) { return empty(shape, float32, logits.device()); };
  MeanCrossEntropyResult result{result_of({}), result_of(targets.shape()), result_of({})};
  const Tensor losses = result_of(targets.shape());
  Tensor gradient = memory_of(logits);
  if constexpr (kBuiltWithCuda)
    run(cuda_stream(logits.device()), CrossEntropyInPlaceArgs{.logits = gradient,
                                                              .targets = targets,
                                                              .ignore_index = o.ignore_index,
                                                              .label_smoothing = o.label_smoothing,
                                                              .losses = losses,
                                                              .lse = result.lse.value,
                                                              .share = result.share.value});
  dispatch(logits.device(), CrossEntropyMeanArgs{.losses = losses,
                                                 .targets = targets,
                                                 .ignore_index = o.ignore_index,
                                                 .loss = result.loss,
                                                 .share = result.share.value});
  gradient.storage()->bump_version();
  ctx.save_constant(gradient, std::optional<Tensor>());
  return result;
}
/// A gradient that forward made already, times that of the loss.
Tensor made_gradient(Context& ctx, const Tensor& dloss) {
  if (ctx.recording())
    throw GraphError(
        "{}: the logits became their gradient, which leaves no second derivative; leave in_place "
        "out",
        ctx.name());
  const bool own = ctx.is_last_use(0);
  const Tensor made = ctx.saved(0);
  Tensor gradient = own ? memory_of(made) : made.clone();
  if constexpr (kBuiltWithCuda)
    run(cuda_stream(made.device()),
        CrossEntropyScaleArgs{.factor = dloss, .gradient = gradient.reshape({made.numel()})});
  return gradient;
}
}  // namespace

MeanCrossEntropyResult MeanCrossEntropy::forward(Context& ctx, const Tensor& logits,
                                                 const Tensor& targets, const Options& o) {
  const Tensor indices = detail::dense(targets);
  if (o.in_place && ctx.recording() && ctx.needs(0) && takes_gradient(logits))
    return with_gradient(ctx, logits, indices, o);
  const CrossEntropyResult each = losses_of(logits, indices, o);
  const auto number = [&] { return empty(Shape{}, each.losses.dtype(), logits.device()); };
  MeanCrossEntropyResult result{number(), each.lse, number()};
  dispatch(logits.device(), CrossEntropyMeanArgs{.losses = each.losses,
                                                 .targets = indices,
                                                 .ignore_index = o.ignore_index,
                                                 .loss = result.loss,
                                                 .share = result.share.value});
  ctx.save(logits, targets);
  ctx.save_constant(result.lse.value, result.share.value);
  return result;
}
Tensor MeanCrossEntropy::backward(Context& ctx, const std::optional<Tensor>& dloss,
                                  const std::optional<Tensor>&, const std::optional<Tensor>&) {
  if (!ctx.saved_optional(1)) return made_gradient(ctx, *dloss);
  return apply<MeanCrossEntropyBackward>(*dloss, ctx.saved(0), ctx.saved(1), ctx.saved(2),
                                         ctx.saved(3), backward_options(ctx));
}

Tensor MeanCrossEntropyBackward::define(const Tensor& dloss, const Tensor& logits,
                                        const Tensor& targets, const Tensor& lse,
                                        const Tensor& share, const Options& o) {
  return CrossEntropyBackward::define(dloss * share, logits, targets, lse, o);
}
Tensor MeanCrossEntropyBackward::forward(Context&, const Tensor& dloss, const Tensor& logits,
                                         const Tensor& targets, const Tensor& lse,
                                         const Tensor& share, const Options& o) {
  return gradient(dloss, share, logits, targets, lse, o);
}

Tensor cross_entropy(const Tensor& logits, const Tensor& targets, const CrossEntropyOptions& o) {
  if (o.reduction == LossReduction::mean) return apply<MeanCrossEntropy>(logits, targets, o).loss;
  const Tensor losses = apply<CrossEntropy>(logits, targets, o).losses;
  return o.reduction == LossReduction::each ? losses : losses.sum();
}

}  // namespace norma
