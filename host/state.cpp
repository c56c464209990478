// Accumulation into state files. The note of a state file says how far it came and from what, one fact a line:
//   rows_done 4096 of 60000
//   classes 10
//   ...
//   features shard-1.npy, 20000 x 512 f32, rows 0:20000
//   labels labels-1.npy, 20000 x 1 i64
// A run may be resumed when every line but the first is the same; else the first line that differs says why not.
// That of a merged one keeps the parts' lines of features:
//   merged
//   part part1.nc, 20000 samples
//   features shard-1.npy, 20000 x 512 f32, rows 0:20000
#include "ncollapse/state.hpp"

#include <algorithm>
#include <charconv>
#include <chrono>
#include <exception>
#include <filesystem>
#include <map>
#include <optional>
#include <set>

#include "host/classifier_files.hpp"
#include "host/dataset.hpp"
#include "host/state_file.hpp"
#include "host/theory/imbalance.hpp"
#include "ncollapse/error.hpp"

namespace ncollapse {

namespace {

using Clock = std::chrono::steady_clock;

constexpr std::string_view kRowsDone = "rows_done ", kFeatures = "features ";

bool exists(const std::string& path) {
  std::error_code ignored;
  return std::filesystem::exists(std::filesystem::symlink_status(path, ignored));
}

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = std::min(text.find('\n', begin), text.size());
    lines.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return lines;
}

/// The first line of a note by accumulate_files; states saved by others have none.
struct RowsDone {
  Index done = 0, total = 0;
};

std::optional<RowsDone> parse_rows_done(const std::string& note) {
  if (!note.starts_with(kRowsDone)) return std::nullopt;
  RowsDone rows;
  const char* const end = note.data() + note.size();
  const auto done = std::from_chars(note.data() + kRowsDone.size(), end, rows.done);
  constexpr std::string_view kOf = " of ";
  if (done.ec != std::errc{} || !std::string_view(done.ptr, end).starts_with(kOf)) return std::nullopt;
  const auto total = std::from_chars(done.ptr + kOf.size(), end, rows.total);
  if (total.ec != std::errc{}) return std::nullopt;
  return rows;
}

class Accumulation {
 public:
  Accumulation(const Context& context, const AccumulationRequest& request)
      : context_(context), request_(request), data_(request.features, request.labels, request.rows) {
    batch_rows_ = data_.batch_rows(request.batch_rows);
    origin_ = "classes " + std::to_string(request.classes) + "\nstatistics " +
              std::string(to_string(request.statistics)) + "\nprecision " + std::string(to_string(request.precision)) +
              "\nbatch_rows " + std::to_string(batch_rows_) + "\n";
    for (const auto& line : data_.inventory()) origin_ += line + "\n";
  }

  Accumulator run(const StateLock& lock) {
    data_.survey_labels().check(request_.classes);
    const bool resumed = request_.resume && exists(request_.state);
    Accumulator moments =
        resumed ? load()
                : Accumulator(context_, {request_.classes, data_.dim(), request_.statistics, {}, request_.precision});
    lock.remove_leftovers();
    const Index rows = data_.rows(), row_bytes = data_.row_bytes(), resumed_at = done_;
    try {
      data_.stream(
          done_, batch_rows_, [&](const MatrixView& x, const LabelView& y) { moments.add(x, y); },
          [&](Index done) {
            done_ = done;
            if (save_is_due()) save(moments);
            if (request_.on_progress)
              request_.on_progress({"moments", done - resumed_at, rows - resumed_at, (done - resumed_at) * row_bytes,
                                    (rows - resumed_at) * row_bytes});
          });
      if (done_ > saved_) save(moments);
    } catch (...) {
      const auto reason = std::current_exception();
      std::exception_ptr unsaved;
      try {
        // A bad shard must not cost the good ones before it. A GPU may find it while later batches are being given,
        // even after something else has ended the run.
        try {
          moments.check();
        } catch (const DataError&) {
        }
        done_ = moments.samples();
        if (done_ > saved_) save(moments);
      } catch (const Error&) {
        unsaved = std::current_exception();
      }
      try {
        std::rethrow_exception(reason);
      } catch (const DataError& error) {
        throw data_.named(error);
      } catch (const Error&) {
        throw;         // the first reason is the one to tell
      } catch (...) {  // ended from outside, in the belief that what was done is kept
        if (unsaved) std::rethrow_exception(unsaved);
        throw;
      }
    }
    return moments;
  }

 private:
  Accumulator load() {
    std::string note;
    Accumulator moments = Accumulator::load(context_, request_.state, &note);
    const auto rows = parse_rows_done(note);
    if (!rows)
      throw DataError(request_.state + ": does not say what it was accumulated from, so it cannot be resumed",
                      "it was merged, or saved by another program; accumulate into another file and merge");
    const auto was = lines_of(note), is = lines_of(origin_);
    for (std::size_t i = 0; i < std::max(was.size() - 1, is.size()); ++i) {
      const std::string before = i + 1 < was.size() ? was[i + 1] : "nothing", now = i < is.size() ? is[i] : "nothing";
      if (before != now)
        throw DataError(request_.state + ": was accumulated with '" + before + "', but now it is '" + now + "'",
                        "resume with the inputs and options it was begun with, or begin another state file");
    }
    if (rows->total != data_.rows() || rows->done != moments.samples() || rows->done > rows->total)
      throw DataError(request_.state + ": its record of " + std::to_string(rows->done) + " of " +
                      std::to_string(rows->total) + " rows contradicts its " + std::to_string(moments.samples()) +
                      " samples");
    done_ = saved_ = rows->done;
    return moments;
  }

  bool save_is_due() const {
    const std::chrono::duration<double> elapsed = Clock::now() - saved_at_;
    return (request_.save_every_rows > 0 && done_ - saved_ >= request_.save_every_rows) ||
           (request_.save_every_seconds > 0 && elapsed.count() >= request_.save_every_seconds);
  }

  void save(const Accumulator& moments) {
    moments.save(request_.state, std::string(kRowsDone) + std::to_string(done_) + " of " +
                                     std::to_string(data_.rows()) + "\n" + origin_);
    saved_ = done_;
    saved_at_ = Clock::now();
  }

  Context context_;
  const AccumulationRequest& request_;
  Dataset data_;
  Index batch_rows_ = 0;
  std::string origin_;  // the note without its first line
  Index done_ = 0, saved_ = 0;
  Clock::time_point saved_at_ = Clock::now();
};

void refuse_existing(const std::string& state, const std::string& hint) {
  if (exists(state)) throw DataError(state + ": exists already", hint);
}

std::string shape_text(const AccumulatorOptions& options) {
  return "K = " + std::to_string(options.classes) + ", d = " + std::to_string(options.dim) + ", statistics " +
         std::string(to_string(options.statistics)) + (options.scatter_weights.empty() ? "" : ", scatter weights");
}

void check_same(const Accumulator& first, const std::string& first_file, const Accumulator& other,
                const std::string& file) {
  const AccumulatorOptions &a = first.options(), &b = other.options();
  if (a.classes == b.classes && a.dim == b.dim && a.statistics == b.statistics &&
      a.scatter_weights == b.scatter_weights)
    return;
  throw DataError(file + " has " + shape_text(b) + ", but " + first_file + " has " + shape_text(a),
                  "all parts are accumulated with the same K, d, statistics and scatter weights");
}

/// Which rows of which files the parts of a merge hold.
class Overlaps {
 public:
  /// A line "features NAME, ROWS x d DTYPE, rows FIRST:END" of the part's note; others say nothing here.
  void add(const std::string& part, const std::string& line) {
    constexpr std::string_view kRows = ", rows ";
    const auto at = line.rfind(kRows);
    if (!line.starts_with(kFeatures) || at == line.npos) return;
    Rows rows{part, 0, 0};
    const char *const begin = line.data() + at + kRows.size(), *const end = line.data() + line.size();
    const auto first = std::from_chars(begin, end, rows.first);
    if (first.ec != std::errc{} || first.ptr == end || *first.ptr != ':') return;
    if (std::from_chars(first.ptr + 1, end, rows.end).ec != std::errc{}) return;
    files_[line.substr(kFeatures.size(), at - kFeatures.size())].push_back(std::move(rows));
  }

  /// Every part that begins inside another is named once, however many it shares rows with.
  std::vector<std::string> sentences() {
    std::vector<std::string> found;
    for (auto& [file, parts] : files_) {
      std::stable_sort(parts.begin(), parts.end(), [](const Rows& a, const Rows& b) { return a.first < b.first; });
      const Rows* furthest = &parts.front();
      for (const Rows& rows : parts) {
        if (rows.first < furthest->end && rows.part != furthest->part)
          found.push_back(furthest->part + " and " + rows.part + " both hold rows " + std::to_string(rows.first) + ":" +
                          std::to_string(std::min(rows.end, furthest->end)) + " of " + file);
        if (rows.end > furthest->end) furthest = &rows;
      }
    }
    return found;
  }

 private:
  struct Rows {
    std::string part;
    Index first, end;
  };
  std::map<std::string, std::vector<Rows>> files_;  // by name and shape
};

}  // namespace

Accumulator accumulate_files(const Context& context, const AccumulationRequest& request) {
  if (request.features.empty() || request.labels.empty()) throw UsageError("features and labels are needed");
  if (request.state.empty()) throw UsageError("a state file to write is needed");
  if (request.state == "-") throw UsageError("a state is a file, not standard output", "write ./- for one named -");
  if (request.classes < 1 || request.classes > kMaxClasses)
    throw UsageError("classes is " + std::to_string(request.classes) + ", must be 1 to " + std::to_string(kMaxClasses));
  if (request.batch_rows < 0 || request.save_every_rows < 0 || !(request.save_every_seconds >= 0))
    throw UsageError("batch rows and saving intervals must not be negative");
  const StateLock lock(request.state);
  if (!request.resume)
    refuse_existing(request.state, "resume it, remove it, or name another file; it is not overwritten");
  return Accumulation(context, request).run(lock);
}

Accumulator merge_states(const Context& context, const FileList& states, const std::string& output,
                         std::vector<std::string>* overlaps) {
  const auto files = expand(states);
  if (files.empty()) throw UsageError("no state files were given");
  if (output == "-") throw UsageError("a state is a file, not standard output", "write ./- for one named -");
  std::optional<StateLock> lock;
  if (!output.empty()) lock.emplace(output);
  if (!output.empty()) refuse_existing(output, "remove it or name another file; it is not overwritten");
  std::set<std::filesystem::path> seen;
  std::optional<Accumulator> sum;
  std::string note = "merged\n";
  Overlaps rows_of_files;
  for (const auto& file : files) {
    std::error_code ignored;
    if (!seen.insert(std::filesystem::weakly_canonical(file, ignored)).second)
      throw DataError(file + ": is given twice, its samples would count twice");
    std::string part_note;
    Accumulator part = Accumulator::load(context, file, &part_note);
    if (const auto rows = parse_rows_done(part_note); rows && rows->done < rows->total)
      throw DataError(file + ": is incomplete, it holds " + std::to_string(rows->done) + " of " +
                          std::to_string(rows->total) + " rows",
                      "complete it first: ncollapse accumulate --resume");
    note += "part " + file + ", " + std::to_string(part.samples()) + " samples\n";
    for (const auto& line : lines_of(part_note)) {
      if (line.starts_with(kFeatures)) note += line + "\n";
      rows_of_files.add(file, line);
    }
    if (!sum) {
      sum.emplace(std::move(part));
    } else {
      check_same(*sum, files.front(), part, file);
      sum->merge(part);
    }
  }
  if (!output.empty()) sum->save(output, note);
  if (overlaps != nullptr) *overlaps = rows_of_files.sentences();
  return std::move(*sum);
}

Report measure_state(const Context& context, const StateMeasurement& request) {
  const auto start = Clock::now();
  check_decays(request.lambda_w, request.lambda_h, request.weights.size());
  const ClassifierFiles head(request.weights, request.bias);
  std::string note;
  const ClassMoments moments = Accumulator::load(context, request.state, &note).finish();
  head.check(*context.backend(), moments.dim(), request.state, moments.classes());
  Evidence evidence;
  evidence.classifier = head.classifier();
  evidence.lambda_w = request.lambda_w;
  evidence.lambda_h = request.lambda_h;
  Report report = [&] {
    try {
      return measure(moments, evidence, request.convention);
    } catch (const DataError& error) {
      throw DataError(request.state + ": " + error.what(), error.hint());
    }
  }();
  if (const auto rows = parse_rows_done(note); rows && rows->done < rows->total)
    report.notes.push_back("the state is incomplete: " + std::to_string(rows->done) + " of " +
                           std::to_string(rows->total) + " rows are in it");
  report.source = {{"state", request.state}};
  for (const auto& file : request.weights) report.source.emplace_back("weights", file);
  if (!request.bias.empty()) report.source.emplace_back("bias", request.bias);
  report.timing.emplace_back("total_s", std::chrono::duration<double>(Clock::now() - start).count());
  return report;
}

}  // namespace ncollapse
