#pragma once

namespace norma::detail {

/// A kernel's door says which plan it took and why, in words that live for ever; explain() listens.
void chose(const char* kernel, const char* why);

}  // namespace norma::detail
