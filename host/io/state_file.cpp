// State files. Layout, little-endian, every array contiguous:
//   "NCOLSTAT" | u32 version | u32 statistics | i64 K | i64 d | i64 samples | u64 flags | i64 note_bytes
//   flags: 1 weights, 2 fast precision, 4 reduced over ranks; times 8: the coarsest type of the features, 0 unknown,
//   1 f64, 2 f32, 3 f16, 4 bf16
//   note | counts i64[K] | weights f64[K] (if any) | error_carried f64 (fast) | shifts f64[K d] | sums f64[K d]
//   square_sums f64[K] (traces and full) | scatter f64[d(d+1)/2], rows of the lower triangle (full)
//   u32 crc32 of everything before it
// Written to a neighbour file, flushed to disk, then renamed over the old one: a killed process leaves the old or the
// new file, never half of one.
#include "host/state_file.hpp"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cmath>
#include <system_error>

#include "ncollapse/error.hpp"

namespace ncollapse {

namespace {

static_assert(std::endian::native == std::endian::little, "state files are written as the machine's own bytes");

constexpr std::array<char, 8> kMagic = {'N', 'C', 'O', 'L', 'S', 'T', 'A', 'T'};
constexpr std::uint32_t kVersion = 2;
constexpr std::uint64_t kHasWeights = 1, kFast = 2, kReduced = 4, kType = 8, kTypes = 4;

struct Header {
  std::array<char, 8> magic = kMagic;
  std::uint32_t version = kVersion;
  std::uint32_t statistics = 0;
  std::int64_t classes = 0, dim = 0, samples = 0;
  std::uint64_t flags = 0;
  std::int64_t note_bytes = 0;
};
static_assert(sizeof(Header) == 56);

std::string system_message() { return std::error_code(errno, std::generic_category()).message(); }

class Descriptor {
 public:
  Descriptor(const std::filesystem::path& path, int flags) : raw_(::open(path.c_str(), flags | O_CLOEXEC, 0666)) {}
  ~Descriptor() { close(); }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return raw_; }
  bool close() {
    const bool closed = raw_ < 0 || ::close(raw_) == 0;
    raw_ = -1;
    return closed;
  }

 private:
  int raw_;
};

// Bytes through a running checksum.
class Checksummed {
 public:
  Checksummed(int descriptor, std::string name) : descriptor_(descriptor), name_(std::move(name)) {}

  void write(const void* data, std::size_t bytes) {
    update(data, bytes);
    const auto* next = static_cast<const char*>(data);
    while (bytes > 0) {
      const auto done = ::write(descriptor_, next, bytes);
      if (done < 0 && errno == EINTR) continue;
      if (done <= 0) throw DataError(name_ + ": cannot write: " + system_message(), "is the disk full?");
      next += done;
      bytes -= static_cast<std::size_t>(done);
    }
  }

  void read(void* data, std::size_t bytes) {
    auto* next = static_cast<char*>(data);
    std::size_t left = bytes;
    while (left > 0) {
      const auto done = ::read(descriptor_, next, left);
      if (done < 0 && errno == EINTR) continue;
      if (done < 0) throw DataError(name_ + ": cannot read: " + system_message());
      if (done == 0) throw DataError(name_ + ": the state file is truncated");
      next += done;
      left -= static_cast<std::size_t>(done);
    }
    update(data, bytes);
  }

  template <class T>
  void write(const std::vector<T>& values) {
    write(values.data(), values.size() * sizeof(T));
  }
  template <class T>
  void read(std::vector<T>& values, Index count) {
    values.resize(static_cast<std::size_t>(count));
    read(values.data(), values.size() * sizeof(T));
  }

  std::uint32_t checksum() const { return static_cast<std::uint32_t>(crc_); }

 private:
  void update(const void* data, std::size_t bytes) {
    if (bytes > 0) crc_ = crc32_z(crc_, static_cast<const Bytef*>(data), bytes);  // null would start anew
  }

  int descriptor_;
  std::string name_;
  uLong crc_ = crc32_z(0, nullptr, 0);
};

const std::string kTemporary = ".tmp";  // and the writer's process number

// Larger sizes than these fit no machine; below them the byte count cannot overflow.
constexpr Index kMaxSide = Index{1} << 28, kMaxNote = Index{1} << 32;

Index promised_bytes(const Header& header) {
  const Index fast = (header.flags & kFast) != 0 ? 1 : 0;
  const Index vectors = 1 + ((header.flags & kHasWeights) != 0 ? 1 : 0) + (header.statistics >= 1 ? 1 : 0);
  const Index triangle = header.statistics >= 2 ? header.dim * (header.dim + 1) / 2 : 0;
  const Index numbers = header.classes * vectors + fast + 2 * header.classes * header.dim + triangle;
  return 8 * numbers + header.note_bytes + static_cast<Index>(sizeof(Header) + sizeof(std::uint32_t));
}

/// What was written wrongly has a right checksum; and what could not be read again is not written.
void check_content(const StateImage& image, const std::string& name) {
  Index left = image.samples;
  for (const Index count : image.counts) {
    if (count < 0 || count > left) left = -1;
    if (left < 0) break;
    left -= count;
  }
  if (left != 0)
    throw DataError(name + ": its class counts do not sum to its " + std::to_string(image.samples) + " samples");
  const auto finite = [](const std::vector<double>& values) {
    return std::all_of(values.begin(), values.end(), [](double value) { return std::isfinite(value); });
  };
  if (!finite(image.shifts) || !finite(image.sums) || !finite(image.square_sums) || !finite(image.scatter) ||
      !std::isfinite(image.error_carried))
    throw DataError(name + ": its sums are not finite",
                    "were its features so large that their squares leave the range of double? rescale them");
  const auto& weights = image.options.scatter_weights;
  if (std::any_of(weights.begin(), weights.end(), [](double a) { return !(a > 0) || !std::isfinite(a); }))
    throw DataError(name + ": holds a scatter weight that is not positive and finite");
  if (std::any_of(image.square_sums.begin(), image.square_sums.end(), [](double sum) { return sum < 0; }))
    throw DataError(name + ": holds a sum of squares below 0");
}

// What a link leads to. A path that is none, or cannot be one, shows when it is opened.
std::filesystem::path behind_link(const std::filesystem::path& path) {
  std::error_code status;
  if (!std::filesystem::is_symlink(path, status)) return path;
  auto file = std::filesystem::weakly_canonical(path, status);
  return status ? path : file;
}

}  // namespace

Index state_file_bytes(Index classes, Index dim, Statistics statistics) {
  Header header;
  header.statistics = static_cast<std::uint32_t>(statistics);
  header.classes = classes;
  header.dim = dim;
  return promised_bytes(header);
}

void write_state(const std::filesystem::path& path, const StateImage& image) {
  // A link stays a link: what it leads to is replaced.
  const auto file = behind_link(path);
  auto temporary = file;
  temporary += kTemporary + std::to_string(::getpid());
  const std::string name = file.string();
  check_content(image, name);
  struct stat old = {};
  const bool replaces = ::stat(file.c_str(), &old) == 0;
  if (replaces && !S_ISREG(old.st_mode))
    throw DataError(name + ": is there and no regular file, it is not replaced", "name another file");
  try {
    Descriptor out(temporary, O_WRONLY | O_CREAT | O_TRUNC);
    if (out.get() < 0) throw DataError(name + ": cannot create the file: " + system_message());
    // Who may read the old one. Where that cannot be had, as on some file systems, the content is worth more.
    if (replaces) static_cast<void>(::fchmod(out.get(), old.st_mode & 0777));
    Checksummed stream(out.get(), name);
    Header header;
    header.statistics = static_cast<std::uint32_t>(image.options.statistics);
    header.classes = image.options.classes;
    header.dim = image.options.dim;
    header.samples = image.samples;
    header.flags = (image.options.scatter_weights.empty() ? 0 : kHasWeights) |
                   (image.options.precision == Precision::fast ? kFast : 0) | (image.reduced ? kReduced : 0) |
                   (image.dtype ? kType * (static_cast<std::uint64_t>(*image.dtype) + 1) : 0);
    header.note_bytes = static_cast<Index>(image.note.size());
    stream.write(&header, sizeof header);
    stream.write(image.note.data(), image.note.size());
    stream.write(image.counts);
    stream.write(image.options.scatter_weights);
    if ((header.flags & kFast) != 0) stream.write(&image.error_carried, sizeof image.error_carried);
    stream.write(image.shifts);
    stream.write(image.sums);
    stream.write(image.square_sums);
    stream.write(image.scatter);
    const std::uint32_t checksum = stream.checksum();
    stream.write(&checksum, sizeof checksum);
    if (::fsync(out.get()) != 0 || !out.close()) throw DataError(name + ": cannot write: " + system_message());
    std::error_code status;
    std::filesystem::rename(temporary, file, status);
    if (status) throw DataError(name + ": cannot replace the file: " + status.message());
  } catch (...) {
    std::error_code ignored;
    std::filesystem::remove(temporary, ignored);
    throw;
  }
}

StateLock::StateLock(const std::filesystem::path& path) : file_(behind_link(path)), lock_(file_) {
  lock_ += ".lock";
  const std::string name = file_.string();
  while (true) {
    descriptor_ = ::open(lock_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (descriptor_ < 0) throw DataError(name + ": cannot be written: " + system_message(), "is its folder writable?");
    struct stat held = {}, named = {};
    const bool locked = ::flock(descriptor_, LOCK_EX | LOCK_NB) == 0;
    const int reason = errno;
    const bool current = locked && ::fstat(descriptor_, &held) == 0 && ::stat(lock_.c_str(), &named) == 0 &&
                         held.st_ino == named.st_ino && held.st_dev == named.st_dev;
    // Some cluster file systems know no locks: there nobody can be kept out, and the work should not fail for it.
    const bool unknown = !locked && (reason == ENOSYS || reason == EOPNOTSUPP || reason == ENOLCK);
    if (current || unknown) break;
    ::close(descriptor_);
    if (!locked && reason == EWOULDBLOCK)
      throw DataError(name + ": another process is writing it", "wait for it, or name another state file");
    if (!locked)
      throw DataError(name + ": cannot be locked: " + std::error_code(reason, std::generic_category()).message());
    // The last holder removed the file between our open and our lock: once more.
  }
}

StateLock::~StateLock() {
  ::unlink(lock_.c_str());  // before the lock goes, so that whoever locks the old file sees that it is gone
  ::close(descriptor_);
}

void StateLock::remove_leftovers() const {
  const auto folder = file_.has_parent_path() ? file_.parent_path() : std::filesystem::path(".");
  const std::string prefix = file_.filename().string() + kTemporary;
  std::error_code ignored;
  std::vector<std::filesystem::path> leftovers;
  for (const auto& entry : std::filesystem::directory_iterator(folder, ignored)) {
    const std::string name = entry.path().filename().string();
    if (!name.starts_with(prefix) || name.size() == prefix.size() ||
        name.find_first_not_of("0123456789", prefix.size()) != std::string::npos)
      continue;
    std::array<char, 8> begin = kMagic;  // of an empty one nothing contradicts it
    const Descriptor in(entry.path(), O_RDONLY | O_NONBLOCK);
    if (in.get() >= 0 && ::read(in.get(), begin.data(), begin.size()) >= 0 && begin == kMagic)
      leftovers.push_back(entry.path());
  }
  for (const auto& leftover : leftovers) std::filesystem::remove(leftover, ignored);
}

StateImage read_state(const std::filesystem::path& file) {
  const std::string name = file.string();
  std::error_code status;
  if (std::filesystem::exists(file, status) && !std::filesystem::is_regular_file(file, status))
    throw DataError(name + ": is not a regular file, and so no state file");
  Descriptor in(file, O_RDONLY);
  if (in.get() < 0) throw DataError(name + ": cannot open the state file: " + system_message());
  Checksummed stream(in.get(), name);

  Header header;
  stream.read(&header, sizeof header);
  if (header.magic != kMagic) throw DataError(name + ": is not an ncollapse state file");
  if (header.version != kVersion)
    throw DataError(name + ": state file version " + std::to_string(header.version) + ", this program reads version " +
                    std::to_string(kVersion));
  const auto size = static_cast<Index>(std::filesystem::file_size(file, status));
  if (header.classes < 1 || header.dim < 1 || header.classes > kMaxSide || header.dim > kMaxSide ||
      header.samples < 0 || header.statistics > 2 || header.flags / kType > kTypes || header.note_bytes < 0 ||
      header.note_bytes > kMaxNote)
    throw DataError(name + ": the header of the state file is damaged");
  const Index promised = promised_bytes(header);
  if (status || promised != size)
    throw DataError(name + ": the state file has " + std::to_string(size) + " bytes, its header promises " +
                        std::to_string(promised),
                    "it is truncated or damaged");

  StateImage image;
  image.options.classes = header.classes;
  image.options.dim = header.dim;
  image.options.statistics = static_cast<Statistics>(header.statistics);
  image.options.precision = (header.flags & kFast) != 0 ? Precision::fast : Precision::exact;
  image.samples = header.samples;
  image.reduced = (header.flags & kReduced) != 0;
  if (const auto type = header.flags / kType; type > 0) image.dtype = static_cast<Dtype>(type - 1);
  image.note.resize(static_cast<std::size_t>(header.note_bytes));
  stream.read(image.note.data(), image.note.size());
  stream.read(image.counts, header.classes);
  if ((header.flags & kHasWeights) != 0) stream.read(image.options.scatter_weights, header.classes);
  if ((header.flags & kFast) != 0) stream.read(&image.error_carried, sizeof image.error_carried);
  stream.read(image.shifts, header.classes * header.dim);
  stream.read(image.sums, header.classes * header.dim);
  if (header.statistics >= 1) stream.read(image.square_sums, header.classes);
  if (header.statistics >= 2) stream.read(image.scatter, header.dim * (header.dim + 1) / 2);
  const std::uint32_t computed = stream.checksum();
  std::uint32_t stored = 0;
  stream.read(&stored, sizeof stored);
  if (computed != stored) throw DataError(name + ": the checksum does not match, the state file is damaged");
  check_content(image, name);
  return image;
}

}  // namespace ncollapse
