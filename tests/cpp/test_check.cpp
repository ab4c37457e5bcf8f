// The check header can fail: ctest expects this program to exit with an error.
#include <stdexcept>

#include "check.h"

TEST(a_false_condition_fails) { CHECK(1 + 1 == 3); }

TEST(a_missing_exception_fails) { CHECK_THROWS(1, std::runtime_error, ""); }

TEST(a_wrong_message_fails) { CHECK_THROWS(throw std::runtime_error("this"), std::runtime_error, "that"); }

TEST(an_escaped_exception_fails) { throw std::runtime_error("escaped on purpose"); }

TEST(this_one_passes) { CHECK(true); }
