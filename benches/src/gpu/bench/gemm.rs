//! A matrix product beside copies: what they cost it.

use kv_cuda::Direction::{ToDevice, ToHost};
use kv_cuda::driver::{DeviceBuffer, Event, Function, Grid, Module};
use kv_cuda::kernels::args::kv_gemm_args;
use kv_cuda::kernels::{self, Threads};

use super::figure::{Figure, plain};
use super::scene::{Over, Scene};
use super::{Bench, GpuError};
use crate::gpu::methods;
use crate::gpu::rig::Rig;

/// Fragments of the copies: the size at which the engine and the kernels differ most.
const FRAGMENT: usize = 4 << 10;
/// Products that are queued together, so that copies run beside them long enough.
const PRODUCTS: u32 = 4;
/// CTAs of the product for each multiprocessor: as many as its registers allow.
const CTAS_EACH: u32 = 2;
const KERNEL: &str = "kv_gemm";

/// Square matrices and the kernel that multiplies them.
struct Product<'a> {
    rig: &'a Rig,
    function: Function,
    threads: u32,
    memory: [DeviceBuffer; 3],
    size: u32,
}

impl<'a> Product<'a> {
    fn new(rig: &'a Rig, size: u32) -> Result<Self, GpuError> {
        let current = rig.enter()?;
        let kernel = |module: &'static kernels::Module| {
            Some((module, module.kernels.iter().find(|kernel| kernel.name == KERNEL)?))
        };
        let Some((module, kernel)) = kernels::MODULES.iter().find_map(kernel) else {
            return Err(GpuError::wrong("there is no kv_gemm among the kernels"));
        };
        let threads = match kernel.threads {
            Threads::Exactly(threads) | Threads::MultipleOf(_, threads) => threads,
        };
        let function = Module::load(&current, module.ptx)?.function(&current, KERNEL)?;
        let matrix = || rig.allocate((size as usize).pow(2) * size_of::<f32>());
        let memory = [matrix()?, matrix()?, matrix()?];
        for (seed, matrix) in (0..).zip(&memory) {
            rig.fill(matrix, seed)?;
        }
        Ok(Self { rig, function, threads, memory, size })
    }

    /// Seconds by the GPU's clock for some products, and how often `meanwhile` was done until their end.
    fn run(&self, mut meanwhile: impl FnMut() -> Result<(), GpuError>) -> Result<(f64, usize), GpuError> {
        let current = self.rig.enter()?;
        let (start, end) = (Event::new(&current)?, Event::new(&current)?);
        let [a, b, c] = self.memory.each_ref().map(|matrix| matrix.at().0);
        let (m, n, k) = (self.size, self.size, self.size);
        let args = kv_gemm_args { a, b, c, m, n, k, reserved: 0 };
        let ctas = CTAS_EACH * self.rig.gpu().multiprocessors;
        start.record(&self.rig.stream)?;
        for _ in 0..PRODUCTS {
            let grid = Grid { ctas, threads: self.threads, shared: 0 };
            // SAFETY: the kernel takes this struct; the matrices have that size and live until `end`.
            unsafe { self.function.launch(&current, &self.rig.stream, grid, &args) }?;
        }
        end.record(&self.rig.stream)?;
        let mut times = 0;
        while !end.is_done()? {
            meanwhile()?;
            times += 1;
        }
        self.rig.stream.synchronize()?;
        Ok((end.seconds_since(&start)?, times))
    }
}

/// The product alone, then beside each method, round by round; per cent that it takes longer.
pub(super) fn measure(rig: &Rig, bench: &Bench) -> Result<Vec<Figure>, GpuError> {
    let product = Product::new(rig, bench.matrix)?;
    // Short copies, so that the last one does not go on for long after the product.
    let scene = Scene::new(rig, (bench.bytes.0 as usize).min(32 << 20), FRAGMENT)?;
    let mut figures = Vec::new();
    let mut alone = Vec::new();
    for direction in [ToDevice, ToHost] {
        let copies = scene.copies(direction);
        let mut contenders: Vec<(String, u32, Over)> = Vec::new();
        for method in [None].into_iter().chain(methods::every(rig).into_iter().map(Some)) {
            let over = scene.contender(method)?;
            if method.is_none() || over.obeys(&[direction], copies.len()) {
                let chosen =
                    over.device.explain(direction, super::scene::urgency(direction), copies.len()).chosen;
                contenders.push((methods::label(method), chosen.ctas(), over));
            }
        }
        let mut slower: Vec<Vec<f64>> = vec![Vec::new(); contenders.len()];
        let mut rates = slower.clone();
        for round in 0..=bench.rounds {
            let (undisturbed, _) = product.run(|| {
                std::hint::spin_loop();
                Ok(())
            })?;
            if round > 0 {
                alone.push(undisturbed * 1e6);
            }
            for (at, (_, _, over)) in contenders.iter().enumerate() {
                let mut copying = 0.0;
                let (beside, times) = product.run(|| {
                    copying += over.run(&[&copies])?;
                    Ok(())
                })?;
                if round > 0 {
                    slower[at].push((beside / undisturbed - 1.0) * 100.0);
                    rates[at].push((times * scene.bytes()) as f64 / 1e9 / copying);
                }
            }
        }
        let way = crate::gpu::explain::direction_name(direction);
        for (((name, ctas, _), slower), rates) in contenders.iter().zip(slower).zip(rates) {
            let figure = |work: String, unit: &str, values| {
                Some(Figure { ctas: *ctas, ..plain(&work, name, unit, values)? })
            };
            figures.extend(figure(format!("product slower beside {way}"), "%", slower));
            figures.extend(figure(
                format!("{way} beside a product"),
                "GB/s",
                rates.into_iter().filter(|rate| rate.is_finite()).collect(),
            ));
        }
    }
    let name = format!("{PRODUCTS} products of {0} x {0} floats", bench.matrix);
    figures.extend(plain(&name, "alone", "us", alone));
    Ok(figures)
}
