// What the environment says of the driver, for tests that run whole commands: they cannot call control.h.
//
//   KVTIER_FAKE_DRIVER=12020       the version that the driver says it is
//   KVTIER_FAKE_DEVICES=0          how many devices there are
//   KVTIER_FAKE_CAPABILITY=80      of each
//   KVTIER_FAKE_BREAK=kv_zero      this kernel leaves its last block out, or this copy its last byte
#pragma once

#include "control.h"

namespace fake {

struct Op;

void apply_environment(FakeSettings &settings);
// Whether the environment wants operations of that name to go wrong.
bool is_broken(const char *name);
// Makes an operation go wrong before it is carried out.
void break_op(Op &op);

}  // namespace fake
