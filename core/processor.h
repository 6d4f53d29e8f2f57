#pragma once

#include <cstddef>
#include <cstdint>

namespace norma::detail {

/// A bit a processor feature that compilers make use of, in kProcessorFeatures' order.
using ProcessorFeatures = uint32_t;

/// What the sources of this build were compiled for (NORMA_ARCH).
extern const ProcessorFeatures features_built_for;

/// What this processor has.
ProcessorFeatures features_present();

/// Writes the sentence that names what is missing, cut to `size`; returns its length. Uses no code
/// that the linker could take from a file built for the newer processor.
size_t write_processor_error(char* out, size_t size, ProcessorFeatures missing);

}  // namespace norma::detail

/// Runs before main and before every static object: where the processor lacks a feature that
/// norma was built for, says which on stderr and ends the program (it would die of SIGILL later).
extern "C" void norma_require_processor();
