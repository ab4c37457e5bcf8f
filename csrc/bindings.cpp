// The Python face of the native core, ttengine._native; the only file that knows pybind11.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstddef>
#include <cstdint>

#include "page_pool.h"

namespace py = pybind11;
using ttengine::PagePool;
using ttengine::PagePoolError;

namespace {

// The bytes of a live page as uint8 [page_bytes]; the array keeps the pool alive, not the page.
py::array page_view(py::object self, PagePool::PageId page) {
  auto& pool = self.cast<PagePool&>();
  auto* bytes = reinterpret_cast<std::uint8_t*>(pool.data(page));
  return py::array_t<std::uint8_t>(static_cast<py::ssize_t>(pool.page_bytes()), bytes, self);
}

py::dict build_info() {
  py::dict info;
  info["version"] = TTENGINE_VERSION;
  info["compiler"] = TTENGINE_COMPILER;
  info["flags"] = TTENGINE_FLAGS;
  info["build_type"] = TTENGINE_BUILD_TYPE;
  info["cxx_standard"] = static_cast<long>(__cplusplus);
  info["pybind11"] = PYBIND11_TOSTRING(PYBIND11_VERSION_MAJOR) "." PYBIND11_TOSTRING(PYBIND11_VERSION_MINOR);
  return info;
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.doc() = "The native core of ttengine.";

  const py::object engine_error = py::module_::import("ttengine.errors").attr("EngineError");
  py::register_exception<PagePoolError>(m, "PagePoolError", engine_error);

  py::class_<PagePool>(m, "PagePool", "A fixed number of equal pages with reference counts.")
      .def(py::init<std::size_t, std::size_t>(), py::arg("capacity"), py::arg("page_bytes"))
      .def("acquire", py::overload_cast<std::size_t>(&PagePool::acquire), py::arg("count") = 1)
      .def("retain", &PagePool::retain, py::arg("page"), py::arg("times") = 1)
      .def("release", &PagePool::release, py::arg("page"))
      .def("references", &PagePool::references, py::arg("page"))
      .def("view", &page_view, py::arg("page"))
      .def_property_readonly("capacity", &PagePool::capacity)
      .def_property_readonly("page_bytes", &PagePool::page_bytes)
      .def_property_readonly("free", &PagePool::free)
      .def_property_readonly("live", &PagePool::live)
      .def_property_readonly("peak", &PagePool::peak);

  m.def("build_info", &build_info, "How this core was built: version, compiler, flags, build type.");
}
