// Just enough of a test framework: TEST defines and registers a case, CHECK counts failures, main() is provided.
#pragma once

#include <cstdio>
#include <exception>
#include <string>
#include <vector>

namespace check {

struct Case {
  const char* name;
  void (*run)();
};

inline std::vector<Case>& cases() {
  static std::vector<Case> all;
  return all;
}

inline int& failures() {
  static int count = 0;
  return count;
}

struct Register {
  Register(const char* name, void (*run)()) { cases().push_back({name, run}); }
};

inline void fail(const char* file, int line, const std::string& what) {
  ++failures();
  std::printf("%s:%d: %s\n", file, line, what.c_str());
}

// Runs every case; an exception that escapes a case fails it. Returns the exit status.
inline int run_all() {
  for (const Case& c : cases()) {
    const int before = failures();
    try {
      c.run();
    } catch (const std::exception& error) {
      fail(c.name, 0, std::string("escaped: ") + error.what());
    }
    std::printf("%-6s %s\n", failures() == before ? "ok" : "FAILED", c.name);
  }
  if (cases().empty()) fail("check.h", 0, "no test case is registered");
  return failures() == 0 ? 0 : 1;
}

}  // namespace check

#define TEST(name)                                           \
  static void name();                                        \
  static const check::Register register_##name(#name, name); \
  static void name()

#define CHECK(condition)                                                        \
  do {                                                                          \
    if (!(condition)) check::fail(__FILE__, __LINE__, "not true: " #condition); \
  } while (false)

// The expression throws `Error`, and its message contains `part`.
#define CHECK_THROWS(expression, Error, part)                                                                 \
  do {                                                                                                        \
    bool thrown = false;                                                                                      \
    try {                                                                                                     \
      static_cast<void>(expression);                                                                          \
    } catch (const Error& error) {                                                                            \
      thrown = true;                                                                                          \
      const std::string message = error.what();                                                               \
      if (message.find(part) == std::string::npos) check::fail(__FILE__, __LINE__, "message is: " + message); \
    }                                                                                                         \
    if (!thrown) check::fail(__FILE__, __LINE__, "did not throw " #Error ": " #expression);                   \
  } while (false)

int main() { return check::run_all(); }
