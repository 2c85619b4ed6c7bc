// Faults of the stub, and what it has seen. Everything is about one server: that of a master's address.
#pragma once

#include <cstddef>
#include <cstdint>

enum StubFault : int {
    STUB_NONE = 0,
    STUB_HANG = 1,       // every call of a client that is set up, until there is another fault
    STUB_SLOW = 2,       // each call takes `amount` ms longer
    STUB_CODE = 3,       // each answer is the code `amount`
    STUB_CALL_CODE = 4,  // the call itself answers the code `amount`
    STUB_CORRUPT = 5,    // a load flips a bit
    STUB_TRUNCATE = 6,   // a load answers fewer bytes
    STUB_SWAP = 7,       // a load answers another key's value
    STUB_LIE_EXIST = 8,  // everything exists
    STUB_NOTHING = 9,    // a load succeeds and writes nothing
    STUB_HALF = 10,      // a load succeeds and writes half
    STUB_TOO_MANY = 11,  // a load answers more bytes than there is room for
    STUB_LEASE_ONCE = 12,  // the first load of every key finds its lease expired
    STUB_LOSE_PUT = 13,  // a store succeeds and keeps nothing
};

#pragma GCC visibility push(default)
extern "C" {
void stub_fault(const char *master, int fault, int64_t amount);
uint64_t stub_struck(const char *master);  // answers that a fault has changed
uint64_t stub_hung(const char *master);    // calls that hang now
uint64_t stub_clients(const char *master); // clients that are set up and not ended
uint64_t stub_bytes(const char *master);   // bytes that clients have registered
// Calls that break the rules: memory that is not registered, a client that has ended, or one that is ended in a call.
uint64_t stub_misuse(void);
// Puts a value under a key, whatever is there.
void stub_set(const char *master, const char *key, const void *value, size_t size);
// A value, at most `size` bytes of it; its length, or -1.
int64_t stub_value(const char *master, const char *key, void *value, size_t size);
}
#pragma GCC visibility pop
