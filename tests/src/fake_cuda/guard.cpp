#include "guard.h"

#include <csetjmp>
#include <csignal>
#include <mutex>

namespace fake {
namespace {

thread_local sigjmp_buf *way_back = nullptr;
struct sigaction before[2];
constexpr int SIGNALS[2] = {SIGSEGV, SIGBUS};

void on_fault(int number, siginfo_t *info, void *context) {
    if (way_back != nullptr) siglongjmp(*way_back, 1);
    // Not ours: whoever was there before, or death.
    const struct sigaction &next = before[number == SIGBUS];
    if ((next.sa_flags & SA_SIGINFO) != 0) {
        next.sa_sigaction(number, info, context);
    } else if (next.sa_handler != SIG_DFL && next.sa_handler != SIG_IGN) {
        next.sa_handler(number);
    } else {
        signal(number, SIG_DFL);
    }
}

void install() {
    struct sigaction action = {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    for (int i = 0; i < 2; ++i) sigaction(SIGNALS[i], &action, &before[i]);
}

}  // namespace

bool guarded(void (*run)(void *), void *arg) {
    static std::once_flag once;
    std::call_once(once, install);
    sigjmp_buf here;
    if (sigsetjmp(here, 1) != 0) {
        way_back = nullptr;
        return false;
    }
    way_back = &here;
    run(arg);
    way_back = nullptr;
    return true;
}

}  // namespace fake
