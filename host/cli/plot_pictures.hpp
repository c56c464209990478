// The pictures of `plot`: for each one a gnuplot script and the data files it reads.
#pragma once

#include <string>
#include <vector>

#include "host/cli/plot_input.hpp"

namespace ncollapse::cli {

enum class PictureFormat { svg, png };

struct TextFile {
  std::string name, text;
};

/// `gnuplot script.name`, started in the folder of its files, draws `image`.
struct Picture {
  std::string image;           ///< file name
  std::string what;            ///< a few words, for the user
  TextFile script;             ///< the image's name with .gp
  std::vector<TextFile> data;  ///< .dat; a later picture may read those of an earlier one
};

/// Curves of a run, the spectrum, the cosines of a report: what the recordings allow. Of several recordings each has
/// its number in its files' names, and runs are put side by side in one more picture. `log_x`: of the curves. Throws
/// DataError when a recording gives nothing to draw, UsageError when runs cannot share an axis.
std::vector<Picture> pictures(const std::vector<Recording>& recordings, PictureFormat format, bool log_x);

}  // namespace ncollapse::cli
