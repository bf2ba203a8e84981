//! The client: drives [`Work`] at a target and verifies every byte of the answers, on tokio-uring.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::time::Instant;

use hdrhistogram::Histogram;
use tokio_uring::net::TcpStream;

use super::{Plan, Tally, Work, new_histogram};
use crate::cpu::{CpuTime, process_seconds};
use crate::message::{Filler, HEADER_BYTES, Header, Kind, Progress, Reader};

/// Room for an answer, or a part of one.
const READ_BYTES: usize = 16 * 1024;

/// Room for a part of a stream.
const BULK_READ_BYTES: usize = 256 * 1024;

/// Submissions the ring takes at once.
const RING_ENTRIES: u32 = 4096;

/// A runtime whose ring is woken only when this thread waits.
pub(super) fn runtime() -> tokio_uring::Builder {
    let mut ring = tokio_uring::uring_builder();
    ring.setup_coop_taskrun();
    let mut builder = tokio_uring::builder();
    builder.entries(RING_ENTRIES).uring_builder(&ring);
    builder
}

/// Does what the plan says, on the calling thread. Fails at the first connection that is refused, reset or ended too early
/// and at the first wrong byte.
pub fn run(plan: &Plan) -> io::Result<Tally> {
    let count = match plan.work {
        Work::Bulk { streams } => streams,
        Work::Connect { concurrency, .. } => concurrency,
        Work::KeepAlive { connections, .. } => connections,
    };
    runtime().start(async {
        let gauge = Rc::new(Gauge::new());
        let mut tasks = Vec::with_capacity(count);
        for number in 0..count {
            let (gauge, plan) = (Rc::clone(&gauge), plan.clone());
            tasks.push(tokio_uring::spawn(async move {
                if let Err(error) = drive(&plan, number as u64, &gauge).await {
                    gauge.fail(error);
                }
            }));
        }
        gauge.wait(plan.warm_up).await?;
        let processes: Vec<u32> = plan.watch_processes.iter().copied().chain([std::process::id()]).collect();
        let processes_before = process_seconds(&processes);
        let before = CpuTime::read(&plan.watch_cpus)?;
        let started = Instant::now();
        gauge.phase.set(Phase::Counting);
        gauge.wait(plan.measure).await?;
        gauge.phase.set(Phase::Over);
        let seconds = started.elapsed().as_secs_f64();
        let after = CpuTime::read(&plan.watch_cpus)?;
        let processes_s = process_seconds(&processes) - processes_before;
        for task in tasks {
            task.abort();
        }
        let done = gauge.done.get();
        if done == 0 {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("{}: nothing completed in {seconds:.1} s", plan.target),
            ));
        }
        Ok(Tally {
            seconds,
            done,
            latency_ns: gauge
                .latency
                .borrow()
                .iter_recorded()
                .map(|v| (v.value_iterated_to(), v.count_at_value()))
                .collect(),
            cpus: after.into_iter().zip(before).map(|(after, before)| after.since(before)).collect(),
            processes_s,
        })
    })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Counting,
    Over,
    WarmUp,
}

/// What the connections of one client share.
struct Gauge {
    phase: Cell<Phase>,
    done: Cell<u64>,
    latency: RefCell<Histogram<u64>>,
    failure: RefCell<Option<io::Error>>,
    failed: tokio::sync::Notify,
}

impl Gauge {
    fn new() -> Gauge {
        Gauge {
            phase: Cell::new(Phase::WarmUp),
            done: Cell::new(0),
            latency: RefCell::new(new_histogram()),
            failure: RefCell::new(None),
            failed: tokio::sync::Notify::new(),
        }
    }

    fn completed(&self, started: Instant) {
        if self.phase.get() == Phase::Counting {
            self.done.set(self.done.get() + 1);
            let took = u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX);
            self.latency.borrow_mut().saturating_record(took);
        }
    }

    fn received(&self, bytes: usize) {
        if self.phase.get() == Phase::Counting {
            self.done.set(self.done.get() + bytes as u64);
        }
    }

    fn over(&self) -> bool {
        self.phase.get() == Phase::Over
    }

    fn fail(&self, error: io::Error) {
        if !self.over() {
            self.failure.borrow_mut().get_or_insert(error);
            self.failed.notify_one();
        }
    }

    /// Waits for the end of a phase, or for the first failure.
    async fn wait(&self, length: std::time::Duration) -> io::Result<()> {
        tokio::select! {
            () = tokio::time::sleep(length) => Ok(()),
            () = self.failed.notified() => {
                Err(self.failure.borrow_mut().take().unwrap_or_else(|| io::Error::other("a connection failed")))
            }
        }
    }
}

async fn drive(plan: &Plan, number: u64, gauge: &Gauge) -> io::Result<()> {
    match plan.work {
        Work::Bulk { .. } => bulk(plan, number, gauge).await,
        Work::Connect { request_bytes, answer_bytes, .. } => {
            let mut exchange = Exchange::new(Kind::AnswerAndClose, number, request_bytes, answer_bytes);
            while !gauge.over() {
                let started = Instant::now();
                let stream = connect(plan).await?;
                exchange.once(&stream).await?;
                exchange.end(&stream).await?;
                gauge.completed(started);
            }
            Ok(())
        }
        Work::KeepAlive { request_bytes, answer_bytes, .. } => {
            let mut exchange = Exchange::new(Kind::Answer, number, request_bytes, answer_bytes);
            let stream = connect(plan).await?;
            while !gauge.over() {
                let started = Instant::now();
                exchange.once(&stream).await?;
                gauge.completed(started);
            }
            Ok(())
        }
    }
}

async fn connect(plan: &Plan) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(plan.target)
        .await
        .map_err(|error| io::Error::new(error.kind(), format!("connect to {}: {error}", plan.target)))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn bulk(plan: &Plan, number: u64, gauge: &Gauge) -> io::Result<()> {
    let stream = connect(plan).await?;
    let header = Header { kind: Kind::Stream, tag: number, filler_bytes: 0, answer_filler_bytes: 0 };
    stream.write_all(header.encode().to_vec()).await.0?;
    let mut filler = Filler::of(number);
    let mut buffer = Vec::with_capacity(BULK_READ_BYTES);
    while !gauge.over() {
        let (result, returned) = stream.read(buffer).await;
        buffer = returned;
        let length = result?;
        if length == 0 {
            return Err(ended_early());
        }
        if !filler.matches(&buffer[..length]) {
            return Err(corrupted());
        }
        gauge.received(length);
    }
    Ok(())
}

/// One connection's requests and answers, and the buffers for them.
struct Exchange {
    kind: Kind,
    tag: u64,
    request_filler: u32,
    answer_filler: u32,
    request: Vec<u8>,
    buffer: Vec<u8>,
}

impl Exchange {
    fn new(kind: Kind, number: u64, request_bytes: usize, answer_bytes: usize) -> Exchange {
        let filler = |bytes: usize| u32::try_from(bytes.saturating_sub(HEADER_BYTES)).unwrap_or(u32::MAX);
        Exchange {
            kind,
            tag: number << 40,
            request_filler: filler(request_bytes),
            answer_filler: filler(answer_bytes),
            request: Vec::with_capacity(request_bytes),
            buffer: Vec::with_capacity(READ_BYTES),
        }
    }

    /// Sends a request and reads its answer.
    async fn once(&mut self, stream: &TcpStream) -> io::Result<()> {
        self.tag += 1;
        let header = Header {
            kind: self.kind,
            tag: self.tag,
            filler_bytes: self.request_filler,
            answer_filler_bytes: self.answer_filler,
        };
        self.request.clear();
        self.request.extend_from_slice(&header.encode());
        self.request.extend_from_slice(Filler::of(self.tag).window(self.request_filler as usize));
        let (result, request) = stream.write_all(std::mem::take(&mut self.request)).await;
        self.request = request;
        result?;

        let mut reader = Reader::new();
        loop {
            let length = self.read(stream).await?;
            if length == 0 {
                return Err(ended_early());
            }
            match reader.take(&self.buffer[..length]) {
                Progress::Partial => {}
                Progress::Complete(answer, used) => {
                    let expected = answer.kind == Kind::Answer
                        && answer.tag == self.tag
                        && answer.filler_bytes == self.answer_filler
                        && used == length;
                    return if expected { Ok(()) } else { Err(corrupted()) };
                }
                Progress::Wrong => return Err(corrupted()),
            }
        }
    }

    /// Reads the end of the connection.
    async fn end(&mut self, stream: &TcpStream) -> io::Result<()> {
        match self.read(stream).await? {
            0 => Ok(()),
            _ => Err(corrupted()),
        }
    }

    async fn read(&mut self, stream: &TcpStream) -> io::Result<usize> {
        let (result, buffer) = stream.read(std::mem::take(&mut self.buffer)).await;
        self.buffer = buffer;
        result
    }
}

fn ended_early() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the connection ended before its answer")
}

fn corrupted() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "bytes arrived that were not sent, or the origin got such")
}
