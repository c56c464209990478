// Everything.
#pragma once

#include "ncollapse/accumulator.hpp"
#include "ncollapse/analysis.hpp"
#include "ncollapse/array_file.hpp"
#include "ncollapse/classifier.hpp"
#include "ncollapse/context.hpp"
#include "ncollapse/decisions.hpp"
#include "ncollapse/decomposition.hpp"
#include "ncollapse/error.hpp"
#include "ncollapse/file_list.hpp"
#include "ncollapse/metrics.hpp"
#include "ncollapse/state.hpp"
#include "ncollapse/theory.hpp"
#include "ncollapse/types.hpp"
#include "ncollapse/ufm.hpp"
#include "ncollapse/version.hpp"
