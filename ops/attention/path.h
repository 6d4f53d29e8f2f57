#pragma once

namespace norma::attention {

/// Whether a PortableAttention lives on this thread.
bool& only_portable();

}  // namespace norma::attention
