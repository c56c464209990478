// Members are streamed: never more of an array is in memory than the caller's batch. Sizes in a zip directory can lie,
// so they are held against the size of the file before anything is allocated by them: deflate shrinks at most 1032
// times. libzip compares the CRC when a read meets the end of a member that was read through; the reads below run into
// that end on purpose.
#include "host/io/npz.hpp"

#include <zip.h>

#include <algorithm>
#include <filesystem>
#include <set>
#include <utility>

#include "host/io/array_info.hpp"

namespace ncollapse::io {

namespace {

constexpr Index kMostDeflateShrinks = 1032;

struct CloseMember {
  void operator()(zip_file_t* member) const { zip_fclose(member); }
};

class ZipMember final : public ByteSource {
 public:
  ZipMember(std::string name, std::shared_ptr<zip> archive, Index member, Index size, bool stored)
      : ByteSource(std::move(name), size), archive_(std::move(archive)), member_(member), stored_(stored) {}

  void read(Index offset, Index count, std::byte* to) override {
    go_to(offset);
    read_on(count, to);
    if (at_ < size_) return;
    expect_end();
    checked_ = checked_ || !sought_;
  }

 private:
  void go_to(Index offset) {
    if (stream_ != nullptr && at_ == offset) return;
    // Where a stream is sought in, the archive's checksum is not compared any more. So what lies near is reached in
    // order, and before the first seek the whole is read in order.
    constexpr Index kNear = Index{64} << 10;
    const bool near = offset <= kNear || (offset > at_ && offset - at_ <= kNear);
    if (stored_ && stream_ != nullptr && !near) {
      if (!checked_) {
        open();
        skip_to(size_);
        expect_end();
        checked_ = true;
      }
      if (zip_fseek(stream_.get(), offset, SEEK_SET) == 0) {
        sought_ = true;
        at_ = offset;
        return;
      }
    }
    if (stream_ == nullptr || offset < at_) open();
    skip_to(offset);
  }

  void open() {
    stream_.reset(zip_fopen_index(archive_.get(), static_cast<zip_uint64_t>(member_), 0));
    at_ = 0;
    sought_ = false;
    if (stream_ == nullptr) damaged(zip_strerror(archive_.get()));
  }

  /// This read meets the member's end, and so compares its checksum.
  void expect_end() {
    std::byte beyond;
    if (read_some(1, &beyond) != 0) damaged("it goes on beyond its size");
  }

  void skip_to(Index offset) {
    std::byte skipped[16384];
    while (at_ < offset) read_on(std::min<Index>(sizeof(skipped), offset - at_), skipped);
  }

  void read_on(Index count, std::byte* to) {
    for (Index done = 0; done < count;) {
      const Index got = read_some(count - done, to + done);
      if (got == 0) damaged("it ends early");
      done += got;
      at_ += got;
    }
  }

  Index read_some(Index count, std::byte* to) {
    const Index got = zip_fread(stream_.get(), to, static_cast<zip_uint64_t>(count));
    if (got < 0) damaged(zip_file_strerror(stream_.get()));
    return got;
  }

  [[noreturn]] void damaged(const std::string& why) {
    const std::string message = "the archive is damaged at byte " + std::to_string(at_) + " of the member's " +
                                std::to_string(size_) + ": " + why;
    stream_.reset();  // its position is unknown now
    fail(name_, message);
  }

  std::shared_ptr<zip> archive_;
  Index member_;
  bool stored_, checked_ = false, sought_ = false;  ///< checked_: the whole was read in order, and so its checksum
  std::unique_ptr<zip_file_t, CloseMember> stream_;
  Index at_ = 0;  ///< where stream_ stands
};

}  // namespace

NpzArchive::NpzArchive(const std::string& path) : path_(path) {
  int code = 0;
  archive_.reset(zip_open(path.c_str(), ZIP_RDONLY, &code), [](zip* archive) {
    if (archive != nullptr) zip_discard(archive);
  });
  if (archive_ == nullptr) {
    if (code == ZIP_ER_MEMORY) throw MemoryError(path + ": out of memory: the archive's list of members");
    zip_error_t error;
    zip_error_init_with_code(&error, code);
    const std::string why = zip_error_strerror(&error);
    zip_error_fini(&error);
    fail(path, "is not a complete zip archive: " + why, "was it cut off while it was written or copied?");
  }
  constexpr std::string_view kSuffix = ".npy";
  std::set<std::string> seen;
  const Index members = zip_get_num_entries(archive_.get(), 0);
  for (Index i = 0; i < members; ++i) {
    const char* const member = zip_get_name(archive_.get(), static_cast<zip_uint64_t>(i), 0);
    if (member == nullptr) fail(path, "the name of member " + std::to_string(i) + " of the archive cannot be read");
    std::string name = member;
    if (name.ends_with(kSuffix)) {
      if (!seen.insert(name).second) {  // zip programs disagree about which one counts
        fail(path, "broken archive: two members are called " + in_quotes(name));
      }
      keys_.push_back(name.substr(0, name.size() - kSuffix.size()));
      members_.push_back(i);
    }
    is_pickle_ = is_pickle_ || name == "data.pkl" || name.ends_with("/data.pkl");
  }
}

std::unique_ptr<ByteSource> NpzArchive::open(std::size_t index) const {
  const std::string name = path_ + ":" + keys_[index];
  const auto member = static_cast<zip_uint64_t>(members_[index]);
  zip_stat_t status;
  zip_stat_init(&status);
  constexpr auto kNeeded =
      zip_uint64_t{ZIP_STAT_SIZE} | ZIP_STAT_COMP_SIZE | ZIP_STAT_COMP_METHOD | ZIP_STAT_ENCRYPTION_METHOD;
  if (zip_stat_index(archive_.get(), member, 0, &status) != 0 || (status.valid & kNeeded) != kNeeded) {
    fail(name, "the archive says too little about this member");
  }
  if (status.encryption_method != ZIP_EM_NONE) fail(name, "is encrypted", "write the archive without a password");
  const bool stored = status.comp_method == ZIP_CM_STORE;
  if (!stored && status.comp_method != ZIP_CM_DEFLATE) {
    fail(name, "is compressed with method " + std::to_string(status.comp_method) + ", which cannot be read",
         "write it with np.savez or np.savez_compressed");
  }
  std::error_code ignored;
  const auto file_bytes = static_cast<zip_uint64_t>(std::filesystem::file_size(path_, ignored));
  const bool lies = status.comp_size > file_bytes ||
                    (stored ? status.size != status.comp_size : status.size / kMostDeflateShrinks > status.comp_size);
  if (lies) {
    fail(name, "broken archive: " + std::to_string(status.size) + " bytes are promised from " +
                   std::to_string(status.comp_size) + " compressed bytes in a file of " + std::to_string(file_bytes));
  }
  return std::make_unique<ZipMember>(name, archive_, members_[index], static_cast<Index>(status.size), stored);
}

}  // namespace ncollapse::io
