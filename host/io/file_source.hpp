// A regular file as a ByteSource. map() maps a window of whole pages around the bytes asked for and drops the window
// before it: address space and resident memory stay as small as a batch, whatever the size of the file.
//
// A page beyond the end of a file that has shrunk raises SIGBUS when it is touched, so the size is asked again before
// each window, and populating the window tells of a file that shrinks in that moment. A file that shrinks while the
// caller works on the window is beyond help.
#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "host/io/array_info.hpp"
#include "host/io/byte_source.hpp"

namespace ncollapse::io {

class FileSource final : public ByteSource {
 public:
  explicit FileSource(const std::string& path) : ByteSource(path) {
    struct stat status = {};
    if (::stat(path.c_str(), &status) != 0) fail(path, errno == ENOENT ? "no such file" : std::strerror(errno));
    // Before opening: a pipe would block, and a device could do anything.
    if (S_ISDIR(status.st_mode)) fail(path, "is a directory", "give a .npy, .npz or .safetensors file in it");
    if (!S_ISREG(status.st_mode)) {
      fail(path, "is not a regular file", "a pipe or device cannot be read in row blocks; save it to a file first");
    }
    file_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (file_ < 0) fail(path, std::string("cannot be opened: ") + std::strerror(errno));
    size_ = current_size();
    if (size_ == 0) {
      ::close(file_);
      fail(path, "is empty (0 bytes)");
    }
    ::posix_fadvise(file_, 0, 0, POSIX_FADV_SEQUENTIAL);
  }

  ~FileSource() override {
    unmap();
    ::close(file_);
  }

  void read(Index offset, Index count, std::byte* to) override {
    for (Index done = 0; done < count;) {
      const ssize_t got = ::pread(file_, to + done, static_cast<std::size_t>(count - done), offset + done);
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) fail(name_, "cannot be read at byte " + std::to_string(offset + done) + ": " + std::strerror(errno));
      if (got == 0) fail_shrunk(offset + count);
      done += got;
    }
  }

  const std::byte* map(Index offset, Index count, Index alignment) override {
    if (count == 0 || offset % alignment != 0) return nullptr;  // a window begins at a page, so file offsets decide
    unmap();
    if (current_size() < offset + count) fail_shrunk(offset + count);
    const Index begin = offset - offset % ::sysconf(_SC_PAGESIZE);
    const auto bytes = static_cast<std::size_t>(offset + count - begin);
    void* const window = ::mmap(nullptr, bytes, PROT_READ, MAP_SHARED, file_, begin);
    if (window == MAP_FAILED) return nullptr;  // a file system without mmap, or no address space left: copy instead
    window_ = window;
    window_bytes_ = bytes;
    ::madvise(window, bytes, MADV_SEQUENTIAL);
#ifdef MADV_POPULATE_READ
    // One call instead of a fault per page in the middle of the computation. Larger windows may not fit in memory.
    constexpr std::size_t kLargestPopulated = std::size_t{256} << 20;
    if (bytes <= kLargestPopulated && ::madvise(window, bytes, MADV_POPULATE_READ) != 0 && errno == EFAULT) {
      unmap();  // touching it would be a SIGBUS: a bad disk, or a file that shrinks right now; read() will say which
      return nullptr;
    }
#endif
    return static_cast<const std::byte*>(window) + (offset - begin);
  }

 private:
  Index current_size() const {
    struct stat status = {};
    return ::fstat(file_, &status) == 0 ? static_cast<Index>(status.st_size) : 0;
  }

  void unmap() noexcept {
    if (window_ != nullptr) ::munmap(window_, window_bytes_);
    window_ = nullptr;
  }

  [[noreturn]] void fail_shrunk(Index needed) const {
    fail(name_, "has changed since it was opened: it had " + std::to_string(size_) + " bytes and has " +
                    std::to_string(current_size()) + " now, but byte " + std::to_string(needed - 1) + " is needed");
  }

  int file_ = -1;
  void* window_ = nullptr;
  std::size_t window_bytes_ = 0;
};

}  // namespace ncollapse::io
