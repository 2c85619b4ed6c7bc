//! kv-cuda
