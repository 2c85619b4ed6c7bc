#include "guard.h"

#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <mutex>

namespace fake {
namespace {

constexpr uint64_t PAGE = 4096;
constexpr unsigned char POISON = 0x5A;
constexpr size_t MOST_PAGES = 1 << 16;

struct Reserved {
    uint64_t start, bytes;
};

// A signal handler reads and writes these: plain memory, no allocation.
Reserved reserved[2];
size_t reserved_count = 0;
uint64_t pages[MOST_PAGES];
size_t page_count = 0;
uint64_t first = 0;
thread_local bool watched = false;
struct sigaction before;

bool is_reserved(uint64_t address) {
    for (size_t i = 0; i < reserved_count; ++i) {
        if (address - reserved[i].start < reserved[i].bytes) return true;
    }
    return false;
}

void *map(uint64_t page, int protection, int flags) {
    return mmap(reinterpret_cast<void *>(page), PAGE, protection, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
}

// Puts a page where there is none; the instruction is then tried again.
bool mend(const siginfo_t &info) {
    auto address = reinterpret_cast<uint64_t>(info.si_addr);
    uint64_t page = address / PAGE * PAGE;
    bool ours = is_reserved(address);
    if (page_count == MOST_PAGES || (!ours && info.si_code != SEGV_MAPERR)) return false;
    void *found = map(page, PROT_READ | PROT_WRITE, ours ? MAP_FIXED : MAP_FIXED_NOREPLACE);
    if (found != reinterpret_cast<void *>(page)) return false;
    memset(found, POISON, PAGE);
    pages[page_count++] = page;
    if (first == 0) first = address != 0 ? address : 1;
    return true;
}

void on_fault(int number, siginfo_t *info, void *context) {
    if (watched) {
        if (mend(*info)) return;
        char text[128];
        int n = snprintf(text, sizeof text, "fake CUDA driver: an operation touched %p, and cannot go on\n", info->si_addr);
        if (write(STDERR_FILENO, text, static_cast<size_t>(n)) < 0) _exit(1);
        abort();
    }
    // Not ours: whoever was there before, or death.
    if ((before.sa_flags & SA_SIGINFO) != 0) {
        before.sa_sigaction(number, info, context);
    } else if (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN) {
        before.sa_handler(number);
    } else {
        signal(number, SIG_DFL);
    }
}

void install() {
    struct sigaction action = {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    sigaction(SIGSEGV, &action, &before);
}

}  // namespace

void guard_reserved(const void *start, size_t bytes) {
    if (reserved_count < std::size(reserved)) reserved[reserved_count++] = {reinterpret_cast<uint64_t>(start), bytes};
}

uint64_t first_fault(void (*run)(void *), void *arg) {
    static std::once_flag once;
    std::call_once(once, install);
    first = 0;
    watched = true;
    run(arg);
    watched = false;
    while (page_count > 0) {
        uint64_t page = pages[--page_count];
        if (is_reserved(page)) {
            map(page, PROT_NONE, MAP_FIXED | MAP_NORESERVE);
        } else {
            munmap(reinterpret_cast<void *>(page), PAGE);
        }
    }
    return first;
}

}  // namespace fake
