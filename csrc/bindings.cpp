// The Python face of the native core, ttengine._native; the only file that knows pybind11.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "block_table.h"
#include "errors.h"
#include "page_pool.h"
#include "search.h"

namespace py = pybind11;
using ttengine::BlockTable;
using ttengine::Isa;
using ttengine::PageEntry;
using ttengine::PagePool;
using ttengine::PagePoolError;
using ttengine::Search;

namespace {

using Floats = py::array_t<float, py::array::c_style>;
using Tokens = py::array_t<std::int64_t, py::array::c_style>;
using TokenRow = std::vector<std::int32_t>;

// The bytes of a live page as uint8 [page_bytes]; the array keeps the pool alive, not the page.
py::array page_view(py::object self, PagePool::PageId page) {
  auto& pool = self.cast<PagePool&>();
  auto* bytes = reinterpret_cast<std::uint8_t*>(pool.data(page));
  return py::array_t<std::uint8_t>(static_cast<py::ssize_t>(pool.page_bytes()), bytes, self);
}

// Calls what may run long without the interpreter lock.
template <typename Work>
void unlocked(const Work& work) {
  const py::gil_scoped_release release;
  work();
}

// Lets Ctrl-C through: raises the exception of a pending signal. Now and then only: another thread may hold the lock.
class SignalCheck {
 public:
  void operator()() {
    const auto now = std::chrono::steady_clock::now();
    if (now - last_ < std::chrono::milliseconds(50)) return;
    last_ = now;
    const py::gil_scoped_acquire acquire;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
  }

 private:
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

Isa isa_of(const std::optional<std::string>& name) {
  if (!name) return ttengine::available_isas().front();
  for (Isa isa : {Isa::avx512, Isa::avx2, Isa::portable}) {
    if (ttengine::isa_name(isa) == *name) return isa;
  }
  throw ttengine::BadArgument("isa is '" + *name + "', allowed are avx512, avx2, portable");
}

ttengine::Sampling sampling_of(const py::handle& sampling) {
  return {sampling.attr("k").cast<std::optional<std::size_t>>(), sampling.attr("cdf").cast<std::optional<float>>(),
          sampling.attr("temperature").cast<float>()};
}

// model, plan: ttengine.config.ModelConfig and PlanConfig.
std::unique_ptr<Search> make_search(const py::handle& model, const py::dict& weights, Floats reward_edges,
                                    Floats value_edges, const py::handle& plan, std::size_t window_tokens,
                                    std::size_t threads, const std::optional<std::string>& isa) {
  const auto size = [&](const char* name) { return model.attr(name).cast<std::size_t>(); };
  const ttengine::ModelShape shape{size("observation_dim"),
                                   size("action_dim"),
                                   size("n_bins"),
                                   size("layers"),
                                   size("heads"),
                                   size("width"),
                                   size("window"),
                                   size("context"),
                                   model.attr("positions").cast<std::string>() == "rotary",
                                   model.attr("goal").cast<bool>()};
  ttengine::Tensors tensors;
  for (const auto& [name, array] : weights) {
    const auto tensor = py::cast<Floats>(array);
    std::vector<std::size_t> dims(tensor.shape(), tensor.shape() + tensor.ndim());
    tensors[name.cast<std::string>()] = {tensor.data(), std::move(dims)};
  }
  const auto setting = [&](const char* name) { return plan.attr(name).cast<std::size_t>(); };
  const py::object percentile = plan.attr("percentile");
  const ttengine::SearchSettings settings{setting("horizon"),
                                          setting("beam_width"),
                                          setting("expand"),
                                          window_tokens,
                                          plan.attr("objective").cast<std::string>() == "likelihood",
                                          plan.attr("deduplicate").cast<bool>(),
                                          sampling_of(plan.attr("observation")),
                                          sampling_of(plan.attr("action")),
                                          sampling_of(plan.attr("reward")),
                                          sampling_of(plan.attr("value")),
                                          py::isinstance<py::str>(percentile) ? 0.0f : percentile.cast<float>(),
                                          plan.attr("percentile_as_released").cast<bool>()};
  const auto edges = [](const Floats& array) { return std::vector<float>(array.data(), array.data() + array.size()); };
  return std::make_unique<Search>(shape, tensors, edges(reward_edges), edges(value_edges), settings, threads,
                                  isa_of(isa));
}

void prefill(Search& search, const std::vector<TokenRow>& prefixes, const std::vector<TokenRow>& goals,
             const std::vector<std::pair<std::int64_t, std::uint32_t>>& keys) {
  std::vector<ttengine::NoiseKey> noise;
  for (const auto& [seed, plan] : keys) noise.push_back({static_cast<std::uint64_t>(seed), plan});
  unlocked([&] { search.prefill(prefixes, goals, noise, SignalCheck()); });
}

std::vector<py::ssize_t> shape_of(const Search& search, std::vector<std::size_t> more) {
  std::vector<py::ssize_t> shape{static_cast<py::ssize_t>(search.problems()), static_cast<py::ssize_t>(search.rows())};
  for (std::size_t dim : more) shape.push_back(static_cast<py::ssize_t>(dim));
  return shape;
}

Tokens planned(const Search& search) {
  Tokens tokens(shape_of(search, {search.planned()}));
  search.copy_tokens(tokens.mutable_data());
  return tokens;
}

py::tuple expand(Search& search, std::size_t copies) {
  unlocked([&] { search.expand(copies); });
  Floats rewards(shape_of(search, {search.rounds()})), values(shape_of(search, {}));
  search.copy_rewards(rewards.mutable_data());
  search.copy_values(values.mutable_data());
  return py::make_tuple(planned(search), rewards, values);
}

// Rows within each problem, [B, W], as rows over all problems.
std::vector<std::uint32_t> all_rows(const Search& search, const Tokens& rows) {
  if (rows.ndim() != 2 || static_cast<std::size_t>(rows.shape(0)) != search.problems() || rows.shape(1) == 0) {
    throw ttengine::BadArgument("rows have another shape than [problems, beams]");
  }
  std::vector<std::uint32_t> all;
  for (py::ssize_t b = 0; b < rows.shape(0); ++b) {
    for (py::ssize_t w = 0; w < rows.shape(1); ++w) {
      const std::int64_t row = rows.at(b, w);
      if (row < 0 || static_cast<std::size_t>(row) >= search.rows()) {
        throw ttengine::BadArgument("row " + std::to_string(row) + " does not exist, there are " +
                                    std::to_string(search.rows()));
      }
      all.push_back(
          static_cast<std::uint32_t>(static_cast<std::size_t>(b) * search.rows() + static_cast<std::size_t>(row)));
    }
  }
  return all;
}

void select_rows(Search& search, const Tokens& kept) {
  const auto rows = all_rows(search, kept);
  unlocked([&] { search.select(rows); });
}

void branch_rows(Search& search, const Tokens& beams, const Tokens& tokens) {
  const auto rows = all_rows(search, beams);
  const TokenRow appended(tokens.data(), tokens.data() + tokens.size());
  unlocked([&] { search.branch(rows, appended); });
}

Floats next_log_probabilities(Search& search) {
  Floats result(shape_of(search, {search.outputs()}));
  float* to = result.mutable_data();
  unlocked([&] { search.next_log_probabilities(to); });
  return result;
}

py::dict counters(const Search& search) {
  const ttengine::SearchCounters counted = search.counters();
  py::dict result;
  result["token_steps"] = counted.token_steps;
  result["logical_rows"] = counted.logical_rows;
  result["physical_rows"] = counted.physical_rows;
  result["prefills"] = counted.prefills;
  result["flops"] = counted.flops;
  result["pages"] = counted.pages;
  return result;
}

// A block table with its two pools, by itself: so that its bookkeeping can be tested against a model.
struct TableProbe {
  PagePool rounds, singles;
  BlockTable table;
  TableProbe(std::size_t capacity, std::size_t page_bytes)
      : rounds(capacity, page_bytes), singles(capacity, page_bytes), table(rounds, singles) {}
};

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
  py::register_exception_translator([](std::exception_ptr thrown) {
    const auto raise = [](const char* name, const char* message) {
      py::set_error(py::module_::import("ttengine.errors").attr(name), message);
    };
    try {
      if (thrown) std::rethrow_exception(thrown);
    } catch (const ttengine::NonFinite& error) {
      raise("NonFiniteError", error.what());
    } catch (const ttengine::BadArgument& error) {
      raise("EngineError", error.what());
    }
  });

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

  py::class_<TableProbe>(m, "BlockTable", "Lists of pages by row, shared by forks; pages of two pools.")
      .def(py::init<std::size_t, std::size_t>(), py::arg("capacity"), py::arg("page_bytes"))
      .def("add", [](TableProbe& self) { self.table.add({}); })
      .def("fork",
           [](TableProbe& self, const std::vector<std::uint32_t>& parents) {
             for (std::uint32_t parent : parents) {
               if (parent >= self.table.rows())
                 throw ttengine::BadArgument("row " + std::to_string(parent) + " is unknown");
             }
             self.table.fork(parents);
           })
      .def("append",
           [](TableProbe& self, std::size_t row, bool single, std::int32_t begin) {
             return self.table.append(row, single ? PageEntry::Kind::single : PageEntry::Kind::round, begin);
           })
      .def("write",
           [](TableProbe& self, std::size_t row, std::uint32_t slot, std::uint8_t value) {
             const auto page = self.table.own_last(row, [](const std::byte* from, std::byte* to, std::size_t slots) {
               std::copy(from, from + slots, to);
             });
             PagePool& pool = self.table.list(row).back().kind == PageEntry::Kind::single ? self.singles : self.rounds;
             pool.data(page)[slot] = std::byte{value};
             self.table.set_filled(row, slot + 1);
           })
      .def("read",
           [](const TableProbe& self, std::size_t row) {
             std::vector<std::vector<std::uint8_t>> pages;
             for (const PageEntry& entry : self.table.list(row)) {
               const auto* bytes = reinterpret_cast<const std::uint8_t*>(self.table.data(entry));
               pages.emplace_back(bytes, bytes + entry.filled);
             }
             return pages;
           })
      .def("drop_before", [](TableProbe& self, std::size_t row, std::int32_t token,
                             std::int32_t round_tokens) { self.table.drop_before(row, token, round_tokens); })
      .def("drop_all", [](TableProbe& self, std::size_t row) { self.table.drop_all(row); })
      .def("clear", [](TableProbe& self) { self.table.clear(); })
      .def_property_readonly("rows", [](const TableProbe& self) { return self.table.rows(); })
      .def_property_readonly(
          "live", [](const TableProbe& self) { return std::make_pair(self.rounds.live(), self.singles.live()); });

  py::class_<Search>(m, "Search", "A batch of beam searches on the CPU.")
      .def(py::init(&make_search), py::arg("model"), py::arg("weights"), py::arg("reward_edges"),
           py::arg("value_edges"), py::arg("plan"), py::arg("window_tokens"), py::arg("threads"), py::arg("isa"))
      .def("prefill", &prefill, py::arg("prefixes"), py::arg("goals"), py::arg("keys"))
      .def("expand", &expand, py::arg("copies"))
      .def("select", &select_rows, py::arg("kept"))
      .def("observe", [](Search& search) { unlocked([&] { search.observe(); }); })
      .def("next_log_probabilities", &next_log_probabilities)
      .def("branch", &branch_rows, py::arg("beams"), py::arg("tokens"))
      .def("planned", &planned)
      .def("counters", &counters)
      .def_property_readonly("live_pages", &Search::live_pages)
      .def_property_readonly("isa", [](const Search& search) { return ttengine::isa_name(search.isa()); });

  m.def(
      "available_isas",
      [] {
        std::vector<std::string> names;
        for (Isa isa : ttengine::available_isas()) names.emplace_back(ttengine::isa_name(isa));
        return names;
      },
      "Instruction sets that this core has kernels for and this machine can run, fastest first.");
  m.def("build_info", &build_info, "How this core was built: version, compiler, flags, build type.");
}
