// Mooncake Store's C API on the client of Mooncake's Python package, which exports no C API of its own. Python runs
// inside this process; the package releases the interpreter's lock while it works, so calls run side by side, but not
// during a setup: those of one process come one after another.
//
// The interpreter is loaded at run time too, and only functions of its stable ABI are used: no headers are needed.

#pragma GCC visibility push(default)
#include "store_c.h"
#pragma GCC visibility pop

#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <string>
#include <type_traits>

namespace {

struct Object;  // PyObject

// The functions of the interpreter.
struct Python {
    void (*Py_InitializeEx)(int);
    void *(*PyEval_SaveThread)();
    int (*PyGILState_Ensure)();
    void (*PyGILState_Release)(int);
    int (*PyRun_SimpleString)(const char *);
    Object *(*PyImport_ImportModule)(const char *);
    Object *(*PyObject_GetAttrString)(Object *, const char *);
    Object *(*PyObject_CallObject)(Object *, Object *);
    Object *(*Py_BuildValue)(const char *, ...);
    Object *(*PyList_New)(intptr_t);
    int (*PyList_SetItem)(Object *, intptr_t, Object *);
    Object *(*PyList_GetItem)(Object *, intptr_t);
    Object *(*PyErr_Occurred)();
    void (*PyErr_Print)();
    long long (*PyLong_AsLongLong)(Object *);
    void (*Py_DecRef)(Object *);

    bool load(const char *file) {
        // Global: the package's modules look for the interpreter's symbols there.
        void *library = dlopen(file, RTLD_NOW | RTLD_GLOBAL);
        if (!library) {
            std::fprintf(stderr, "%s\n", dlerror());
            return false;
        }
        auto find = [&](auto &function, const char *name) {
            function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, name));
            return function != nullptr;
        };
#define FIND(name) find(name, #name)
        return FIND(Py_InitializeEx) && FIND(PyEval_SaveThread) && FIND(PyGILState_Ensure) &&
               FIND(PyGILState_Release) && FIND(PyRun_SimpleString) && FIND(PyImport_ImportModule) &&
               FIND(PyObject_GetAttrString) && FIND(PyObject_CallObject) && FIND(Py_BuildValue) && FIND(PyList_New) &&
               FIND(PyList_SetItem) && FIND(PyList_GetItem) && FIND(PyErr_Occurred) && FIND(PyErr_Print) &&
               FIND(PyLong_AsLongLong) && FIND(Py_DecRef);
#undef FIND
    }
} python;

std::mutex starting;
Object *store_class = nullptr;

// The interpreter's lock, for one call.
class Locked {
  public:
    Locked() : state_(python.PyGILState_Ensure()) {}
    ~Locked() { python.PyGILState_Release(state_); }

  private:
    int state_;
};

// Calls a method with a tuple, which it takes; null after an exception, which is printed.
Object *call(void *store, const char *method, Object *arguments) {
    Object *function = python.PyObject_GetAttrString(static_cast<Object *>(store), method);
    Object *result = function && arguments ? python.PyObject_CallObject(function, arguments) : nullptr;
    if (function) python.Py_DecRef(function);
    if (arguments) python.Py_DecRef(arguments);
    if (!result) python.PyErr_Print();
    return result;
}

// The number that a method answers, or -1.
int64_t number(Object *result) {
    if (!result) return -1;
    long long value = python.PyLong_AsLongLong(result);
    python.Py_DecRef(result);
    if (python.PyErr_Occurred()) python.PyErr_Print();
    return value;
}

template <typename Make>
Object *list(size_t count, Make make) {
    Object *items = python.PyList_New(static_cast<intptr_t>(count));
    for (size_t i = 0; i < count; ++i) python.PyList_SetItem(items, static_cast<intptr_t>(i), make(i));
    return items;
}

Object *texts(const char **keys, size_t count) {
    return list(count, [&](size_t i) { return python.Py_BuildValue("s", keys[i]); });
}

unsigned long long address(void *pointer) { return reinterpret_cast<uintptr_t>(pointer); }

// The numbers of a list, one for each result.
template <typename Result>
int numbers(Object *answers, size_t count, Result *results) {
    if (!answers) return -1;
    for (size_t i = 0; i < count; ++i) {
        Object *item = python.PyList_GetItem(answers, static_cast<intptr_t>(i));
        results[i] = item ? static_cast<Result>(python.PyLong_AsLongLong(item)) : -1;
        if (python.PyErr_Occurred()) python.PyErr_Print();
    }
    python.Py_DecRef(answers);
    return 0;
}

Object *keys_places_sizes(const char **keys, void **buffers, const size_t *sizes, size_t count) {
    Object *places = list(count, [&](size_t i) { return python.Py_BuildValue("K", address(buffers[i])); });
    Object *lengths =
        list(count, [&](size_t i) { return python.Py_BuildValue("K", static_cast<unsigned long long>(sizes[i])); });
    return python.Py_BuildValue("(NNN)", texts(keys, count), places, lengths);
}

}  // namespace

extern "C" {

// Starts the interpreter, a shared library, with a folder that holds the package. 0 if all is well.
__attribute__((visibility("default"))) int shim_start(const char *interpreter, const char *packages) {
    std::lock_guard lock(starting);
    if (store_class) return 0;
    // Unless somebody wants to see more of what it does.
    setenv("MC_LOG_LEVEL", "ERROR", 0);
    if (!python.load(interpreter)) return -1;
    python.Py_InitializeEx(0);
    std::string path = std::string("import sys; sys.path.insert(0, '") + packages + "')";
    python.PyRun_SimpleString(path.c_str());
    Object *module = python.PyImport_ImportModule("mooncake.store");
    if (module) store_class = python.PyObject_GetAttrString(module, "MooncakeDistributedStore");
    if (!store_class) python.PyErr_Print();
    python.PyEval_SaveThread();
    return store_class ? 0 : -1;
}

mooncake_store_t mooncake_store_create(void) {
    if (!store_class) return nullptr;
    Locked locked;
    return python.PyObject_CallObject(store_class, nullptr);
}

void mooncake_store_destroy(mooncake_store_t store) {
    Locked locked;
    number(call(store, "close", python.Py_BuildValue("()")));
    python.Py_DecRef(static_cast<Object *>(store));
}

int mooncake_store_setup(mooncake_store_t store, const char *hostname, const char *metadata, uint64_t segment,
                         uint64_t buffer, const char *protocol, const char *devices, const char *master) {
    Locked locked;
    unsigned long long sizes[] = {segment, buffer};
    return static_cast<int>(number(call(store, "setup",
                                        python.Py_BuildValue("(ssKKsss)", hostname, metadata, sizes[0], sizes[1],
                                                             protocol, devices, master))));
}

int mooncake_store_register_buffer(mooncake_store_t store, void *buffer, size_t size) {
    Locked locked;
    auto *arguments = python.Py_BuildValue("(KK)", address(buffer), static_cast<unsigned long long>(size));
    return static_cast<int>(number(call(store, "register_buffer", arguments)));
}

int mooncake_store_unregister_buffer(mooncake_store_t store, void *buffer) {
    Locked locked;
    return static_cast<int>(number(call(store, "unregister_buffer", python.Py_BuildValue("(K)", address(buffer)))));
}

int mooncake_store_batch_put_from(mooncake_store_t store, const char **keys, void **buffers, const size_t *sizes,
                                  size_t count, const mooncake_replicate_config_t *, int *results_out) {
    Locked locked;
    return numbers(call(store, "batch_put_from", keys_places_sizes(keys, buffers, sizes, count)), count, results_out);
}

int mooncake_store_batch_get_into(mooncake_store_t store, const char **keys, void **buffers, const size_t *sizes,
                                  size_t count, int64_t *results_out) {
    Locked locked;
    return numbers(call(store, "batch_get_into", keys_places_sizes(keys, buffers, sizes, count)), count, results_out);
}

int mooncake_store_batch_is_exist(mooncake_store_t store, const char **keys, size_t count, int *results_out) {
    Locked locked;
    return numbers(call(store, "batch_is_exist", python.Py_BuildValue("(N)", texts(keys, count))), count, results_out);
}

int64_t mooncake_store_get_size(mooncake_store_t store, const char *key) {
    Locked locked;
    return number(call(store, "get_size", python.Py_BuildValue("(s)", key)));
}

int mooncake_store_remove(mooncake_store_t store, const char *key, int force) {
    Locked locked;
    return static_cast<int>(number(call(store, "remove", python.Py_BuildValue("(si)", key, force))));
}

int64_t mooncake_store_remove_by_regex(mooncake_store_t store, const char *pattern, int force) {
    Locked locked;
    return number(call(store, "remove_by_regex", python.Py_BuildValue("(si)", pattern, force)));
}

}  // extern "C"
