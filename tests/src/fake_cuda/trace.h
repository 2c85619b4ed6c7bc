// What was called, what has run, and what was done wrong.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "abi.h"
#include "control.h"

namespace fake {

struct Trace {
    std::vector<FakeCall> calls;
    std::vector<FakeOp> ops;
    std::vector<std::string> violations;

    void call(const char *symbol, Handle stream, uint64_t bytes, Result result) {
        // A thread that polls must not fill the memory.
        if (!calls.empty()) {
            FakeCall &last = calls.back();
            if (last.symbol == symbol && last.stream == stream && last.bytes == bytes && last.result == result) {
                ++last.times;
                return;
            }
        }
        calls.push_back({symbol, stream, bytes, result, 1});
    }
    void violation(std::string what) { violations.push_back(std::move(what)); }
};

// Calls that are to fail.
class Faults {
public:
    void add(const char *symbol, uint64_t nth, Result code, bool for_ever) {
        rules_.push_back({symbol, nth, code, for_ever});
    }
    void clear() { rules_.clear(); }
    // What this call is to return; SUCCESS if it is to do its work.
    Result next(const std::string &symbol) {
        Result code = SUCCESS;
        for (Rule &rule : rules_) {
            if (rule.symbol != "*" && rule.symbol != symbol) continue;
            if (rule.left > 0 && --rule.left > 0) continue;
            if (rule.spent) continue;
            rule.spent = !rule.for_ever;
            if (code == SUCCESS) code = rule.code;
        }
        return code;
    }

private:
    struct Rule {
        std::string symbol;
        uint64_t left;
        Result code;
        bool for_ever;
        bool spent = false;
    };
    std::vector<Rule> rules_;
};

}  // namespace fake
