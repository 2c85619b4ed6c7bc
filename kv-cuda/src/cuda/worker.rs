//! The thread that hands pieces to the GPU and sees them come to pass.
//!
//! It is the only one that submits copies. It never blocks in the driver: what is under way it asks after,
//! with pauses that grow while nothing happens.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::num::NonZeroU64;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kv_core::job::{TransferError, Urgency};

use super::lane::{Lane, SlotIndex};
use super::method::{Method, Shape};
use super::piece::{Piece, cut, layer_stages};
use super::{CudaError, Request, Shared};
use crate::device::Direction;
use crate::driver::{Current, Event};

/// Shortest pause between two looks at the GPU: about a tenth of the time of what is under way.
const SHORT_REST: Duration = Duration::from_micros(10);
/// Longest pause.
const LONG_REST: Duration = Duration::from_millis(1);
/// Bytes of a group of layers at least: below, its overhead would show.
pub(super) const LAYER_GROUP: usize = 1 << 20;

/// A transfer that was begun or waits to be.
pub(super) struct Transfer {
    pub(super) request: Request,
    pub(super) shape: Shape,
    pub(super) method: Method,
    /// Not yet handed to the GPU; with the last piece of a group of layers, the layer after the group.
    waiting: VecDeque<(Piece, Option<u32>)>,
    /// Pieces of each block that are not over.
    left: Vec<u32>,
    errors: Vec<Option<TransferError>>,
    /// When the GPU began with it.
    pub(super) started: Option<Event>,
    /// Pieces handed to the GPU and not over.
    flying: usize,
}

impl Transfer {
    /// One piece of a block is over, or will never be begun. With the last one, how the block fared.
    pub(super) fn end_piece_of(
        &mut self,
        block: usize,
        error: Option<TransferError>,
    ) -> Option<Option<TransferError>> {
        let (left, first) = (self.left.get_mut(block)?, self.errors.get_mut(block)?);
        *first = first.or(error);
        *left = left.checked_sub(1)?;
        (*left == 0).then_some(*first)
    }

    pub(super) fn succeeded(&self) -> bool {
        self.errors.iter().all(Option::is_none)
    }
}

/// A piece that the GPU has.
struct Flight {
    lane: usize,
    slot: SlotIndex,
    transfer: Rc<RefCell<Transfer>>,
    piece: Piece,
    layers_end: Option<u32>,
    done: Arc<Event>,
    /// Its submission failed half-way: it is waited for and fails.
    failed: Option<CudaError>,
}

/// The thread's state. However it ends, every copy is completed.
pub(super) struct Worker {
    shared: Arc<Shared>,
    lanes: Vec<Lane>,
    queues: Vec<VecDeque<Rc<RefCell<Transfer>>>>,
    flights: Vec<Flight>,
    last_progress: Instant,
    /// Set when the device was closed.
    closing: Option<Instant>,
    /// The context is lost, or the GPU does not come back.
    gone: bool,
}

impl Worker {
    pub(super) fn new(shared: Arc<Shared>, lanes: Vec<Lane>) -> Self {
        let queues = lanes.iter().map(|_| VecDeque::new()).collect();
        let (flights, last_progress) = (Vec::new(), Instant::now());
        Self { shared, lanes, queues, flights, last_progress, closing: None, gone: false }
    }

    /// Works until the device is closed and nothing is under way.
    pub(super) fn run(mut self) {
        // Pauses of microseconds: by default the kernel would round them up by 50.
        if rustix::thread::set_current_timer_slack(NonZeroU64::new(1)).is_err() {
            tracing::warn!(
                "timers of the copying thread stay coarse: write-backs may leave gaps on the link"
            );
        }
        let current = match self.shared.context.enter() {
            Ok(current) => current,
            Err(error) => return self.shared.go_down(&error),
        };
        loop {
            let busy = !self.flights.is_empty() || self.queues.iter().any(|queue| !queue.is_empty());
            let rest = busy.then(|| self.rest());
            let (requests, closed) = self.shared.next_requests(rest);
            if closed && self.closing.is_none() {
                self.closing = Some(Instant::now());
            }
            for request in requests {
                self.accept(request);
            }
            if self.closing.is_some() || self.gone {
                self.fail_waiting();
            }
            let progress = self.submit_pieces(&current) | self.collect();
            if progress {
                self.last_progress = Instant::now();
            }
            match self.closing {
                Some(_) if self.flights.is_empty() => return,
                Some(since) if since.elapsed() > self.shared.patience => {
                    tracing::error!(
                        copies = self.flights.len(),
                        patience = ?self.shared.patience,
                        "the GPU does not finish its copies: their memory is given up"
                    );
                    return self.give_up();
                }
                _ => {}
            }
        }
    }

    /// How long to wait for news before looking at the GPU again: nothing right after it made progress,
    /// longer and longer when it makes none.
    fn rest(&self) -> Duration {
        let quiet = self.last_progress.elapsed();
        let demand = self.flights.iter().any(|flight| self.lanes[flight.lane].urgency == Urgency::Demand);
        if demand && quiet < LONG_REST { Duration::ZERO } else { (quiet / 4).clamp(SHORT_REST, LONG_REST) }
    }

    /// Chooses how a request is copied and cuts it into pieces.
    fn accept(&mut self, request: Request) {
        let Some(at) = self
            .lanes
            .iter()
            .position(|lane| (lane.direction, lane.urgency) == (request.direction, request.urgency))
        else {
            return;
        };
        let pool = &self.shared.pool;
        let layout = pool.placement().layout();
        let (blocks, block_bytes) = (request.copies.len(), layout.bytes_per_block());
        let run_bytes = pool.placement().fragment_bytes();
        let groups: Vec<(Option<u32>, Range<usize>)> = match &request.progress {
            None => vec![(None, 0..block_bytes)],
            Some(_) => layer_stages(layout.layers(), layout.bytes_per_layer(), blocks, LAYER_GROUP)
                .into_iter()
                .map(|(layers, bytes)| (Some(layers.end), bytes))
                .collect(),
        };
        let whole_runs = groups
            .iter()
            .all(|(_, bytes)| bytes.start.is_multiple_of(run_bytes) && bytes.end.is_multiple_of(run_bytes));
        let shape = self.shared.shape_of(&request, whole_runs);
        let method = self.shared.choose(&shape);
        let limit = self.lanes[at].limit(method);
        let mut waiting: VecDeque<(Piece, Option<u32>)> = VecDeque::new();
        for (layers_end, bytes) in groups {
            waiting.extend(cut(blocks, bytes, run_bytes, limit).map(|piece| (piece, None)));
            if let Some((_, last)) = waiting.back_mut() {
                *last = layers_end;
            }
        }
        let mut left = vec![0; blocks];
        for (piece, _) in &waiting {
            for block in piece.blocks.clone() {
                left[block] += 1;
            }
        }
        let errors = vec![None; blocks];
        let transfer = Transfer { request, shape, method, waiting, left, errors, started: None, flying: 0 };
        self.queues[at].push_back(Rc::new(RefCell::new(transfer)));
    }

    /// Hands pieces to the GPU, demand first, as long as their lanes have slots.
    fn submit_pieces(&mut self, current: &Current) -> bool {
        let mut progress = false;
        for urgency in [Urgency::Demand, Urgency::WriteBack] {
            for lane in 0..self.lanes.len() {
                while self.lanes[lane].urgency == urgency && !self.gone && self.submit_piece(current, lane) {
                    progress = true;
                }
            }
        }
        progress
    }

    /// Hands one piece of a lane to the GPU; false if there is none, or no slot for it.
    fn submit_piece(&mut self, current: &Current, at: usize) -> bool {
        let Some(transfer) = self.queues[at].front().cloned() else { return false };
        let lane = &mut self.lanes[at];
        let Some(slot) = lane.take_slot() else { return false };
        let mut state = transfer.borrow_mut();
        let Some((piece, layers_end)) = state.waiting.pop_front() else {
            lane.free_slot(slot);
            return false;
        };
        if state.waiting.is_empty() {
            self.queues[at].pop_front();
        }
        let queued = self.shared.queue_piece(current, &mut self.lanes[at], &mut state, &piece, &slot);
        let (done, failed) = match queued {
            Ok(done) => (done, None),
            Err((Some(done), error)) => (done, Some(error)),
            // Not even an event: the GPU cannot be asked any more.
            Err((None, error)) => {
                self.lanes[at].free_slot(slot);
                let direction = state.request.direction;
                self.shared.end_piece(&mut state, &piece, Some(lost(direction)));
                drop(state);
                self.go_down(&error);
                return true;
            }
        };
        state.flying += 1;
        if let (Some(progress), Some(_)) = (&state.request.progress, layers_end) {
            progress.group_queued(Arc::clone(&done));
        }
        drop(state);
        let lost = failed.clone().filter(CudaError::is_sticky);
        self.flights.push(Flight { lane: at, slot, transfer, piece, layers_end, done, failed });
        if let Some(error) = lost {
            self.go_down(&error);
        }
        true
    }

    /// Takes leave of pieces that are over; of one transfer in order, so that layers arrive in order.
    fn collect(&mut self) -> bool {
        let mut progress = false;
        let mut at = 0;
        while let Some(flight) = self.flights.get(at) {
            let before = &self.flights[..at];
            let waits = before.iter().any(|earlier| Rc::ptr_eq(&earlier.transfer, &flight.transfer));
            match if waits { Ok(false) } else { flight.done.is_done() } {
                Ok(false) => at += 1,
                Ok(true) => {
                    let flight = self.flights.remove(at);
                    self.land(flight);
                    progress = true;
                }
                Err(error) => {
                    self.go_down(&error);
                    return true;
                }
            }
        }
        progress
    }

    fn land(&mut self, flight: Flight) {
        let Flight { lane, slot, transfer, piece, layers_end, done, failed } = flight;
        self.lanes[lane].free_slot(slot);
        let mut state = transfer.borrow_mut();
        state.flying -= 1;
        let error = failed.map(|error| {
            tracing::error!(%error, "the CUDA driver refused a copy");
            TransferError::Device(error.code)
        });
        if let Some(progress) = &state.request.progress {
            match (error, layers_end) {
                (Some(error), _) => progress.fail(error),
                (None, Some(layer)) => progress.arrived(layer),
                (None, None) => {}
            }
        }
        self.shared.end_piece(&mut state, &piece, error);
        if state.flying == 0 && state.waiting.is_empty() {
            self.shared.end_transfer(&mut state, &done);
        }
        drop(state);
        if let Ok(event) = Arc::try_unwrap(done).map_err(drop) {
            self.shared.events.give(event);
        }
    }

    /// Completes what was not begun.
    fn fail_waiting(&mut self) {
        for transfer in self.queues.iter_mut().flat_map(std::mem::take) {
            let mut state = transfer.borrow_mut();
            if let Some(progress) = &state.request.progress {
                progress.fail(TransferError::Down);
            }
            while let Some((piece, _)) = state.waiting.pop_front() {
                self.shared.end_piece(&mut state, &piece, Some(TransferError::Down));
            }
        }
    }

    /// The device is lost: nothing that is under way will come to pass.
    fn go_down(&mut self, error: &CudaError) {
        tracing::error!(%error, "the GPU is lost to this process; restart it to use the GPU again");
        self.gone = true;
        self.shared.go_down(error);
        self.fail_flights();
        self.fail_waiting();
    }

    /// Nothing is waited for any more. What the GPU may still touch stays allocated for ever.
    fn give_up(&mut self) {
        self.gone = true;
        std::mem::forget(Arc::clone(&self.shared));
        std::mem::forget(std::mem::take(&mut self.lanes));
        self.fail_flights();
        self.fail_waiting();
    }

    fn fail_flights(&mut self) {
        for flight in std::mem::take(&mut self.flights) {
            let mut state = flight.transfer.borrow_mut();
            let error = lost(state.request.direction);
            if let Some(progress) = &state.request.progress {
                progress.fail(error);
            }
            self.shared.end_piece(&mut state, &flight.piece, Some(error));
            // Still queued on the GPU, perhaps.
            std::mem::forget(flight.done);
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Only a sink that panicked leaves something here. The GPU goes on with it.
        self.shared.close_queue();
        if !self.flights.is_empty() {
            self.give_up();
        }
        let (requests, _) = self.shared.next_requests(Some(Duration::ZERO));
        for request in requests {
            request.refuse(&*self.shared.sink);
        }
        self.fail_waiting();
    }
}

/// What becomes of a copy that the GPU has and will never report. Host memory that it may still write is
/// given up; a block of a lost GPU is no loss.
const fn lost(direction: Direction) -> TransferError {
    match direction {
        Direction::ToHost => TransferError::InDoubt,
        Direction::ToDevice => TransferError::Down,
    }
}
