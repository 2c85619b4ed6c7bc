//! The limit without fio: one thread per unit of queue depth, each with one blocking call at a time. No headers,
//! no checksums, no queue.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use memmap2::{Advice, MmapMut};

use super::Direction;
use super::limit::Task;
use crate::SplitMix64;

/// Bytes before the first extent of a file, as in a segment.
const HEAD: u64 = 8192;

/// Bytes per second.
pub(super) fn measure(task: &Task<'_>) -> io::Result<f64> {
    let files: Vec<File> =
        task.files.iter().map(|name| open(&task.dir.join(name))).collect::<io::Result<_>>()?;
    let mut places = Vec::new();
    for (file, open) in files.iter().enumerate() {
        let extents = open.metadata()?.len().saturating_sub(HEAD) / task.extent as u64;
        places.extend((0..extents).map(|at| (file, HEAD + at * task.extent as u64)));
    }
    if places.is_empty() {
        return Err(io::Error::new(ErrorKind::UnexpectedEof, "no extent fits the files"));
    }
    let mut buffers: Vec<MmapMut> =
        (0..task.depth).map(|_| buffer(task.extent)).collect::<io::Result<_>>()?;
    // Writes go round in order, reads anywhere.
    let turn = AtomicU64::new(0);
    let next = |rng: &mut SplitMix64| match task.direction {
        Direction::Read => places[rng.below(places.len() as u64) as usize],
        Direction::Write => places[turn.fetch_add(1, Ordering::Relaxed) as usize % places.len()],
    };
    let started = Instant::now();
    let work = |buffer: &mut MmapMut, seed| -> io::Result<u64> {
        let mut rng = SplitMix64::new(seed);
        let mut bytes = 0;
        while started.elapsed() < task.time {
            let (file, offset) = next(&mut rng);
            match task.direction {
                Direction::Read => files[file].read_exact_at(buffer, offset)?,
                Direction::Write => files[file].write_all_at(buffer, offset)?,
            }
            bytes += buffer.len() as u64;
        }
        Ok(bytes)
    };
    let work = &work;
    let bytes: u64 = std::thread::scope(|scope| {
        let seeds = (0..).map(|thread| (task.seed << 32) + thread);
        let threads: Vec<_> = buffers
            .iter_mut()
            .zip(seeds)
            .map(|(buffer, seed)| scope.spawn(move || work(buffer, seed)))
            .collect();
        let done =
            threads.into_iter().map(|t| t.join().unwrap_or_else(|_| Err(io::Error::other("a thread died"))));
        done.sum::<io::Result<u64>>()
    })?;
    Ok(bytes as f64 / started.elapsed().as_secs_f64())
}

/// `O_DIRECT`, or through the page cache where the log has to go there too.
fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    match options.custom_flags(libc::O_DIRECT).open(path) {
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => options.custom_flags(0).open(path),
        other => other,
    }
}

/// Aligned, touched, and on huge pages like the arena.
fn buffer(bytes: usize) -> io::Result<MmapMut> {
    let mut buffer = MmapMut::map_anon(bytes)?;
    // A kernel without huge pages is a slower limit, no failure.
    buffer.advise(Advice::HugePage).ok();
    let mut rng = SplitMix64::new(bytes as u64);
    buffer
        .chunks_mut(8)
        .for_each(|chunk| chunk.copy_from_slice(&rng.next_u64().to_le_bytes()[..chunk.len()]));
    Ok(buffer)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn extents_are_read_and_written_within_the_files() {
        let dir = tempfile::tempdir().unwrap();
        let files = ["a".to_owned(), "b".to_owned()];
        let size = HEAD as usize + 3 * 8192 + 4096;
        files.iter().for_each(|name| std::fs::write(dir.path().join(name), vec![7; size]).unwrap());
        let mut task = Task {
            dir: dir.path(),
            files: &files,
            direction: Direction::Read,
            extent: 8192,
            depth: 2,
            time: Duration::from_millis(5),
            seed: 1,
        };
        assert!(measure(&task).unwrap() > 0.0);
        task.direction = Direction::Write;
        task.time = Duration::from_millis(50);
        assert!(measure(&task).unwrap() > 0.0);
        for name in &files {
            let bytes = std::fs::read(dir.path().join(name)).unwrap();
            assert_eq!(bytes.len(), size);
            let untouched = |range: std::ops::Range<usize>| bytes[range].iter().all(|b| *b == 7);
            assert!(untouched(0..8192) && untouched(size - 4096..size), "only whole extents behind the head");
        }
        task.extent = 1 << 20;
        assert_eq!(measure(&task).unwrap_err().kind(), ErrorKind::UnexpectedEof);
    }
}
