//! The CUDA kernels of `kernels/`: their PTX, what is in it, and the arguments they take. No driver calls.
//!
//! The PTX and [`args`] are generated from `kernels/` by `make kernels` and checked in; see
//! `kernels/README.md`.

#[allow(missing_docs, non_camel_case_types)] // C's names; the documentation is the header's, as far as it goes
#[rustfmt::skip]
pub mod args;
mod divisor;
mod nest;

pub use divisor::InvalidDivisor;
pub use nest::{InvalidLoops, Loops};

/// Compute capability of a GPU: major and minor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Capability(pub u32, pub u32);

/// A loadable module.
#[derive(Debug)]
pub struct Module {
    /// Name of its source in `kernels/`, without the ending.
    pub name: &'static str,
    /// What the driver compiles.
    pub ptx: &'static str,
    /// GPUs below it cannot load the module.
    pub at_least: Capability,
    /// Its kernels.
    pub kernels: &'static [Kernel],
}

/// A kernel of a module. Each takes one struct of [`args`], by value.
#[derive(Debug)]
pub struct Kernel {
    /// Its name in the PTX.
    pub name: &'static str,
    /// Bytes of its argument.
    pub arg_bytes: usize,
    /// Threads of a CTA that it can be launched with.
    pub threads: Threads,
}

/// Numbers of threads in a CTA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Threads {
    /// This number and no other.
    Exactly(u32),
    /// Every multiple of the first, up to the second.
    MultipleOf(u32, u32),
}

const SM_80: Capability = Capability(8, 0);
const SM_90: Capability = Capability(9, 0);

/// A module of one kernel, as all of them are.
macro_rules! module {
    ($name:literal, $at_least:expr, $kernel:literal($args:ty), $threads:expr) => {
        Module {
            name: $name,
            ptx: include_str!(concat!("../../../kernels/generated/", $name, ".ptx")),
            at_least: $at_least,
            kernels: &[Kernel { name: $kernel, arg_bytes: size_of::<$args>(), threads: $threads }],
        }
    };
}

/// Every module.
pub const MODULES: &[Module] = &[
    module!("copy", SM_80, "kv_copy"(args::kv_copy_args), Threads::MultipleOf(1, 1024)),
    module!("bulk", SM_90, "kv_copy_bulk"(args::kv_copy_args), Threads::Exactly(32)),
    module!("zero", SM_80, "kv_zero"(args::kv_zero_args), Threads::MultipleOf(1, 1024)),
    module!("digest", SM_80, "kv_digest_blocks"(args::kv_digest_args), Threads::MultipleOf(32, 1024)),
    module!("gemm", SM_80, "kv_gemm"(args::kv_gemm_args), Threads::Exactly(256)),
];

#[cfg(test)]
mod tests {
    use super::*;

    /// What the PTX says must be what the table says: names, sizes of arguments, target.
    #[test]
    fn modules_are_what_their_ptx_says() {
        for module in MODULES {
            let target = format!(".target sm_{}{}", module.at_least.0, module.at_least.1);
            assert!(module.ptx.lines().any(|line| line == target), "{}: {target}", module.name);
            let entries: Vec<&str> = module
                .ptx
                .lines()
                .filter_map(|line| line.strip_prefix(".visible .entry ")?.strip_suffix('('))
                .collect();
            let named: Vec<&str> = module.kernels.iter().map(|kernel| kernel.name).collect();
            assert_eq!(entries, named, "{}", module.name);
            for kernel in module.kernels {
                let param = format!("{}_param_0[{}]", kernel.name, kernel.arg_bytes);
                assert!(module.ptx.contains(&param), "{}: {param}", module.name);
                let most = match kernel.threads {
                    Threads::Exactly(threads) | Threads::MultipleOf(_, threads) => threads,
                };
                assert!(
                    module.ptx.contains(&format!(".maxntid {most}, 1, 1")),
                    "{}: {most} threads",
                    kernel.name
                );
            }
        }
    }

    /// Drivers refuse PTX that is newer than they are; CUDA 12.4 is 8.4.
    #[test]
    fn drivers_from_cuda_12_4_on_load_the_ptx() {
        for module in MODULES {
            let version = module.ptx.lines().find_map(|line| line.strip_prefix(".version ")).unwrap();
            let (major, minor) = version.split_once('.').unwrap();
            let version: (u32, u32) = (major.parse().unwrap(), minor.parse().unwrap());
            assert!(version <= (8, 4), "{}: {version:?}", module.name);
        }
    }
}
