//! The look-up alone, for comparing two versions of it: `cargo bench -p kvtier-benches -- --save-baseline old`.
//! Figures for people, with contenders, come from `kvtier bench index`.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use kvtier_benches::index::{Contender, Identity, Kvtier, Map, Operation, Workload};

fn match_prefix(criterion: &mut Criterion) {
    for blocks in [16_384, 131_072] {
        let load = Workload::new(blocks, 1);
        let mut group = criterion.benchmark_group(format!("match/{blocks}"));
        group.throughput(Throughput::Elements(blocks as u64)).sample_size(20);
        let contenders: [Box<dyn Contender>; 2] =
            [Box::new(Kvtier::new(&load)), Box::new(Map::<Identity>::new(&load))];
        for mut contender in contenders {
            group.bench_function(contender.name(), |b| {
                b.iter(|| black_box(contender.run(Operation::Match, &load)));
            });
        }
        group.finish();
    }
}

criterion_group!(benches, match_prefix);
criterion_main!(benches);
