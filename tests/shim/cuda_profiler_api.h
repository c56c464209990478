#pragma once
#include "tests/shim/cuda_runtime.h"
