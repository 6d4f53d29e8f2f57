#pragma once

/// The one place where the version stands; CMake reads it here.
#define NORMA_VERSION "0.1.0"
