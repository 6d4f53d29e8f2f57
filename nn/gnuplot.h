#pragma once

#include <string>
#include <string_view>

namespace norma::nn {

/// What gnuplot writes to its standard output for this script. No shell, and nothing of the user's
/// own settings. Throws IOError, which names the package, where gnuplot is missing, and with its
/// first line of complaint where it fails.
std::string gnuplot(const std::string& script);

/// 'text' as a gnuplot string, whatever its characters; a line break becomes a space.
std::string gnuplot_quoted(std::string_view text);

}  // namespace norma::nn
