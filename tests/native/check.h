// CHECK(condition) << "what" << ...: counts and prints what does not hold, the first few times.
#pragma once
#include <iostream>
#include <sstream>

struct Check {
  inline static int failures = 0;
  inline static long checks = 0;
  bool holds;
  std::ostringstream text;

  Check(bool condition, const char* expression, int line) : holds(condition) {
    checks++;
    if (!holds) text << "line " << line << ": " << expression << ": ";
  }
  ~Check() {
    if (!holds && failures++ < 10) std::cout << text.str() << std::endl;
  }
  template <class T>
  Check& operator<<(const T& value) {
    if (!holds) text << value;
    return *this;
  }
  static int report() {
    std::cout << checks << " checks, " << failures << " failures" << std::endl;
    return failures != 0;
  }
};
#define CHECK(condition) Check(condition, #condition, __LINE__)
