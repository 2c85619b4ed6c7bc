#include "environment.h"

#include <cstdlib>
#include <cstring>

#include "kv_kernels.h"
#include "streams.h"

namespace fake {

namespace {

void number(const char *name, uint64_t &out) {
    if (const char *text = std::getenv(name)) out = std::strtoull(text, nullptr, 10);
}

template <typename Args>
void drop_last_block(Op &op) {
    if (op.argument.size() != sizeof(Args)) return;
    Args args;
    std::memcpy(&args, op.argument.data(), sizeof args);
    if (args.num_blocks > 0) --args.num_blocks;
    std::memcpy(op.argument.data(), &args, sizeof args);
}

}  // namespace

void apply_environment(FakeSettings &settings) {
    number("KVTIER_FAKE_DRIVER", settings.driver_version);
    number("KVTIER_FAKE_DEVICES", settings.devices);
    number("KVTIER_FAKE_CAPABILITY", settings.compute_capability);
}

bool is_broken(const char *name) {
    const char *broken = std::getenv("KVTIER_FAKE_BREAK");
    return broken != nullptr && std::strcmp(broken, name) == 0;
}

void break_op(Op &op) {
    if (op.kind == Op::Kind::Kernel) {
        drop_last_block<kv_copy_args>(op);
        drop_last_block<kv_zero_args>(op);
        drop_last_block<kv_digest_args>(op);
    }
    for (Piece &piece : op.pieces) {
        if (op.kind == Op::Kind::Copy && piece.bytes > 1) --piece.bytes;
    }
}

}  // namespace fake
