#pragma once

// What a user includes. By hand, so that what is public stays a choice.
#include "norma/core/autograd.h"
#include "norma/core/device.h"
#include "norma/core/dtype.h"
#include "norma/core/error.h"
#include "norma/core/file.h"
#include "norma/core/format.h"
#include "norma/core/npy.h"
#include "norma/core/op.h"
#include "norma/core/parallel.h"
#include "norma/core/random.h"
#include "norma/core/safetensors.h"
#include "norma/core/shape.h"
#include "norma/core/tensor.h"
#include "norma/core/version.h"
