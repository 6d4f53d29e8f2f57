#pragma once

#include <stdexcept>
#include <string>
#include <string_view>

#include "norma/core/format.h"

namespace norma {

/// What every exception of the library is. The message reads
/// `where: what must hold, but what came[; the mend]`.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

namespace detail {
/// One exception type a kind of mistake; the tag only tells the types apart.
template <class Kind>
class FormattedError : public Error {
 public:
  template <class... A>
  explicit FormattedError(std::string_view text, const A&... args)
      : Error(norma::format(text, args...)) {}
};
}  // namespace detail

using ShapeError = detail::FormattedError<struct ShapeErrorKind>;    ///< sizes that do not fit
using DTypeError = detail::FormattedError<struct DTypeErrorKind>;    ///< element types likewise
using DeviceError = detail::FormattedError<struct DeviceErrorKind>;  ///< tensors on several devices
using ValueError = detail::FormattedError<struct ValueErrorKind>;    ///< an impossible option
using GraphError = detail::FormattedError<struct GraphErrorKind>;  ///< misuse of autograd, capture
using IOError = detail::FormattedError<struct IOErrorKind>;        ///< files
using CudaError = detail::FormattedError<struct CudaErrorKind>;    ///< what CUDA reports

}  // namespace norma
