// The pictures of `plot` and `report`: for each one a gnuplot script and the data files it reads.
#pragma once

#include <cstddef>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "host/cli/recording.hpp"

namespace ncollapse::cli {

enum class PictureFormat { svg, png, pdf };

/// "svg", "png", "pdf"; throws UsageError for anything else.
PictureFormat parse_picture_format(std::string_view name);

struct TextFile {
  std::string name, text;
};

/// `gnuplot script.name`, started in the folder of its files, draws `image`.
struct Picture {
  std::optional<std::size_t> recording;  ///< which one it shows; none: several together
  std::string image;                     ///< file name
  std::string what;                      ///< a few words, for the user
  std::string caption;                   ///< what is seen, and how to read it
  std::string alternative;               ///< for those who cannot see it: what it shows, with its last values
  TextFile script;                       ///< the image's name with .gp
  std::vector<TextFile> data;            ///< .dat; pictures may read those of others
};

/// Of each recording what it allows: curves, spectrum, cosines. Of several recordings each has its number in its files'
/// names. And of all runs together, side by side: their distances to collapse with the training accuracy, and where
/// there are several all curves. `log_x`: of the curves. Throws DataError when a run has no value that can be drawn,
/// UsageError when runs cannot share an axis.
std::vector<Picture> pictures(const std::vector<Recording>& recordings, PictureFormat format, bool log_x);

/// Writes the picture's script and data into the folder. An old image goes: it must not pass for the new one.
void write_script(const Picture& picture, const std::filesystem::path& folder);

/// Has gnuplot draw it there; half an image does not stay. Throws as run_gnuplot, with the same `remark`.
void draw(const Picture& picture, const std::filesystem::path& folder, const std::string& remark = {});

}  // namespace ncollapse::cli
