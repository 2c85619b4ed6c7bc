// Mooncake Store's C API on a map in this process. What it does well it does as the real client does; what it does
// badly is asked for in stub.h.

#include "stub.h"

#pragma GCC visibility push(default)
#include "store_c.h"
#pragma GCC visibility pop

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <regex>
#include <set>
#include <string>
#include <thread>
#include <vector>

namespace {

constexpr int kInvalid = -600, kNotFound = -704, kExpired = -707;

using Value = std::vector<char>;

// What a master and the nodes behind it are to their clients.
struct Server {
    std::mutex mutex;
    std::condition_variable changed;
    std::map<std::string, Value> values;
    std::set<std::string> expired;
    int fault = STUB_NONE;
    int64_t amount = 0;
    uint64_t struck = 0, hung = 0, clients = 0, bytes = 0;
    std::mt19937_64 random{1};
};

struct Client {
    std::shared_ptr<Server> server;
    std::mutex mutex;
    std::map<char *, size_t> registered;
    int calls = 0;
};

std::atomic<uint64_t> misuse{0};

std::mutex all_mutex;
std::map<std::string, std::shared_ptr<Server>> servers;
std::set<Client *> clients;

std::shared_ptr<Server> server_of(const char *master) {
    std::lock_guard lock(all_mutex);
    auto &server = servers[master];
    if (!server) server = std::make_shared<Server>();
    return server;
}

// One call of a client that is set up: it may hang or be slow, and the client must outlive it.
class Call {
  public:
    explicit Call(mooncake_store_t store) : client_(static_cast<Client *>(store)) {
        {
            std::lock_guard lock(all_mutex);
            if (!clients.contains(client_)) {
                ++misuse;
                client_ = nullptr;
                return;
            }
            ++client_->calls;
        }
        if (!client_->server) return;
        auto &server = *client_->server;
        std::unique_lock lock(server.mutex);
        if (server.fault == STUB_HANG) {
            ++server.hung;
            ++server.struck;
            server.changed.wait(lock, [&] { return server.fault != STUB_HANG; });
            --server.hung;
        } else if (server.fault == STUB_SLOW) {
            ++server.struck;
            auto time = std::chrono::milliseconds(server.amount);
            lock.unlock();
            std::this_thread::sleep_for(time);
        }
    }

    ~Call() {
        std::lock_guard lock(all_mutex);
        if (client_) --client_->calls;
    }

    // What the call answers before it does anything; 0 if it does something.
    int refused() {
        if (!client_ || !client_->server) return kInvalid;
        std::lock_guard lock(client_->server->mutex);
        if (client_->server->fault != STUB_CALL_CODE) return 0;
        ++client_->server->struck;
        return static_cast<int>(client_->server->amount);
    }

    Client &client() { return *client_; }
    Server &server() { return *client_->server; }

    bool is_registered(const void *buffer, size_t size) {
        std::lock_guard lock(client_->mutex);
        auto *start = static_cast<const char *>(buffer);
        for (auto &[base, len] : client_->registered)
            if (start >= base && start + size <= base + len) return true;
        ++misuse;
        return false;
    }

  private:
    Client *client_;
};

// The rest holds the server's lock.

bool strikes(Server &server, int fault) {
    if (server.fault != fault) return false;
    ++server.struck;
    return true;
}

int64_t load(Server &server, const std::string &key, char *buffer, size_t size) {
    if (strikes(server, STUB_CODE)) return server.amount;
    auto found = server.values.find(key);
    if (found == server.values.end()) return kNotFound;
    if (server.fault == STUB_LEASE_ONCE && server.expired.insert(key).second) {
        ++server.struck;
        return kExpired;
    }
    if (server.fault == STUB_SWAP && server.values.size() > 1) {
        auto other = std::next(found);
        if (other == server.values.end()) other = server.values.begin();
        ++server.struck;
        found = other;
    }
    const Value &value = found->second;
    if (value.size() > size) return kInvalid;
    if (strikes(server, STUB_NOTHING)) return static_cast<int64_t>(value.size());
    size_t n = value.size();
    if (strikes(server, STUB_HALF)) {
        std::memcpy(buffer, value.data(), n / 2);
        return static_cast<int64_t>(n);
    }
    if (n > 0 && strikes(server, STUB_TRUNCATE)) n = server.random() % n;
    std::memcpy(buffer, value.data(), n);
    if (n > 0 && strikes(server, STUB_CORRUPT)) buffer[server.random() % n] ^= char(1 << server.random() % 8);
    if (strikes(server, STUB_TOO_MANY)) return static_cast<int64_t>(size + 1 + server.random() % 1000000);
    return static_cast<int64_t>(n);
}

int exists(Server &server, const std::string &key) {
    if (strikes(server, STUB_CODE)) return static_cast<int>(server.amount);
    if (strikes(server, STUB_LIE_EXIST)) return 1;
    return server.values.contains(key) ? 1 : 0;
}

}  // namespace

extern "C" {

mooncake_store_t mooncake_store_create(void) {
    auto *client = new Client;
    std::lock_guard lock(all_mutex);
    clients.insert(client);
    return client;
}

int mooncake_store_setup(mooncake_store_t store, const char *, const char *, uint64_t, uint64_t, const char *,
                         const char *, const char *master) {
    auto *client = static_cast<Client *>(store);
    auto server = server_of(master);
    {
        std::lock_guard lock(server->mutex);
        ++server->clients;
    }
    client->server = server;
    Call call(store);
    return call.refused();
}

void mooncake_store_destroy(mooncake_store_t store) {
    { Call call(store); }
    auto *client = static_cast<Client *>(store);
    {
        std::lock_guard lock(all_mutex);
        if (!clients.erase(client) || client->calls > 0) {
            ++misuse;
            return;
        }
    }
    if (client->server) {
        std::lock_guard lock(client->server->mutex);
        --client->server->clients;
        for (auto &[base, len] : client->registered) client->server->bytes -= len;
    }
    delete client;
}

int mooncake_store_register_buffer(mooncake_store_t store, void *buffer, size_t size) {
    Call call(store);
    if (int code = call.refused()) return code;
    std::scoped_lock lock(call.client().mutex, call.server().mutex);
    call.client().registered[static_cast<char *>(buffer)] = size;
    call.server().bytes += size;
    return 0;
}

int mooncake_store_unregister_buffer(mooncake_store_t store, void *buffer) {
    Call call(store);
    if (int code = call.refused()) return code;
    std::scoped_lock lock(call.client().mutex, call.server().mutex);
    auto found = call.client().registered.find(static_cast<char *>(buffer));
    if (found == call.client().registered.end()) return kInvalid;
    call.server().bytes -= found->second;
    call.client().registered.erase(found);
    return 0;
}

int mooncake_store_batch_put_from(mooncake_store_t store, const char **keys, void **buffers, const size_t *sizes,
                                  size_t count, const mooncake_replicate_config_t *, int *results_out) {
    Call call(store);
    if (int code = call.refused()) return code;
    for (size_t i = 0; i < count; ++i) {
        auto *bytes = static_cast<const char *>(buffers[i]);
        bool registered = call.is_registered(bytes, sizes[i]);
        std::lock_guard lock(call.server().mutex);
        if (!registered) {
            results_out[i] = kInvalid;
        } else if (strikes(call.server(), STUB_CODE)) {
            results_out[i] = static_cast<int>(call.server().amount);
        } else {
            // What is there stays, and nobody is told.
            if (!strikes(call.server(), STUB_LOSE_PUT))
                call.server().values.try_emplace(keys[i], bytes, bytes + sizes[i]);
            results_out[i] = 0;
        }
    }
    return 0;
}

int mooncake_store_batch_get_into(mooncake_store_t store, const char **keys, void **buffers, const size_t *sizes,
                                  size_t count, int64_t *results_out) {
    Call call(store);
    if (int code = call.refused()) return code;
    for (size_t i = 0; i < count; ++i) {
        // Of a key that comes twice only the last place is filled, and both are reported.
        char *place = static_cast<char *>(buffers[i]);
        for (size_t j = i + 1; j < count; ++j)
            if (std::strcmp(keys[i], keys[j]) == 0) place = static_cast<char *>(buffers[j]);
        bool registered = call.is_registered(buffers[i], sizes[i]);
        std::lock_guard lock(call.server().mutex);
        results_out[i] = registered ? load(call.server(), keys[i], place, sizes[i]) : kInvalid;
    }
    return 0;
}

int mooncake_store_batch_is_exist(mooncake_store_t store, const char **keys, size_t count, int *results_out) {
    Call call(store);
    if (int code = call.refused()) return code;
    std::lock_guard lock(call.server().mutex);
    for (size_t i = 0; i < count; ++i) results_out[i] = exists(call.server(), keys[i]);
    return 0;
}

int64_t mooncake_store_get_size(mooncake_store_t store, const char *key) {
    Call call(store);
    if (int code = call.refused()) return code;
    std::lock_guard lock(call.server().mutex);
    auto found = call.server().values.find(key);
    return found == call.server().values.end() ? kNotFound : static_cast<int64_t>(found->second.size());
}

int mooncake_store_remove(mooncake_store_t store, const char *key, int) {
    Call call(store);
    if (int code = call.refused()) return code;
    std::lock_guard lock(call.server().mutex);
    if (strikes(call.server(), STUB_CODE)) return static_cast<int>(call.server().amount);
    return call.server().values.erase(key) ? 0 : kNotFound;
}

int64_t mooncake_store_remove_by_regex(mooncake_store_t store, const char *pattern, int) {
    Call call(store);
    if (int code = call.refused()) return code;
    std::lock_guard lock(call.server().mutex);
    if (strikes(call.server(), STUB_CODE)) return call.server().amount;
    std::regex regex(pattern, std::regex::ECMAScript);
    return static_cast<int64_t>(
        std::erase_if(call.server().values, [&](auto &entry) { return std::regex_search(entry.first, regex); }));
}

void stub_fault(const char *master, int fault, int64_t amount) {
    auto server = server_of(master);
    std::lock_guard lock(server->mutex);
    server->fault = fault;
    server->amount = amount;
    server->expired.clear();
    server->changed.notify_all();
}

uint64_t stub_struck(const char *master) {
    auto server = server_of(master);
    std::lock_guard lock(server->mutex);
    return server->struck;
}

uint64_t stub_hung(const char *master) {
    auto server = server_of(master);
    std::lock_guard lock(server->mutex);
    return server->hung;
}

uint64_t stub_clients(const char *master) {
    auto server = server_of(master);
    std::lock_guard lock(server->mutex);
    return server->clients;
}

uint64_t stub_bytes(const char *master) {
    auto server = server_of(master);
    std::lock_guard lock(server->mutex);
    return server->bytes;
}

uint64_t stub_misuse(void) { return misuse; }

void stub_set(const char *master, const char *key, const void *value, size_t size) {
    auto server = server_of(master);
    std::lock_guard lock(server->mutex);
    auto *bytes = static_cast<const char *>(value);
    server->values[key].assign(bytes, bytes + size);
}

int64_t stub_value(const char *master, const char *key, void *value, size_t size) {
    auto server = server_of(master);
    std::lock_guard lock(server->mutex);
    auto found = server->values.find(key);
    if (found == server->values.end()) return -1;
    std::memcpy(value, found->second.data(), std::min(size, found->second.size()));
    return static_cast<int64_t>(found->second.size());
}

}  // extern "C"
