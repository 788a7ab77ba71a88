// yocobit._native.MappedFile.

#include "model/mapped_file.h"

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

namespace nb = nanobind;
using namespace nb::literals;

namespace yocobit {
namespace {

using FileBytes = nb::ndarray<nb::numpy, const uint8_t, nb::ndim<1>>;

FileBytes bytes_of(const MappedFile& file) {
  const size_t size = file.size();
  return FileBytes(file.data(), {size}, nb::find(file));
}

}  // namespace

void bind_mapped_file(nb::module_& m) {
  nb::exception<FileChangedError>(m, "FileChangedError", PyExc_RuntimeError);
  nb::class_<MappedFile>(
      m, "MappedFile",
      "A file mapped for reading. Reading pages that were cut off by truncating\n"
      "it ends the process with a line that names the file.")
      .def(nb::init<const std::string&>(), "path"_a,
           "RuntimeError if the file cannot be mapped, is empty or not a regular file.")
      .def_prop_ro("bytes", &bytes_of,
                   nb::sig("def bytes(self) -> numpy.typing.NDArray[numpy.uint8]"),
                   "The file as a read-only array, which keeps it mapped.")
      .def("check_unchanged", &MappedFile::check_unchanged,
           "FileChangedError if the file was overwritten or truncated since it was mapped.");
}

}  // namespace yocobit
