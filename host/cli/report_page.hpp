// The page that `report` writes: tables and pictures in one HTML file that needs nothing else.
#pragma once

#include <string>
#include <vector>

#include "host/cli/pictures.hpp"
#include "host/cli/recording.hpp"

namespace ncollapse::cli {

/// HTML that is well-formed XML as well. `drawings`: the SVG file of each picture. The page loads nothing, and forbids
/// the browser to.
std::string report_page(const std::vector<Recording>& recordings, const std::vector<Picture>& all,
                        const std::vector<std::string>& drawings);

}  // namespace ncollapse::cli
