//! WASI 0.2 for components of other toolchains, whose runtimes import it whether or not the code uses it: a world with
//! no file, no socket, no argument and no variable, in which time is counted and randomness comes from a seed.
//!
//! Two invariants: the same calls get the same answers, always; and nothing here waits. A sleep moves the instance's own
//! clock and is over at once, for the thread that it would block is the slot's.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rand_core::TryRng;
use wasmtime::component::{HasData, Linker, Resource, ResourceTable};
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::bindings::clocks::monotonic_clock;
use wasmtime_wasi::p2::{DynPollable, OutputStream, Pollable, StreamResult, subscribe};
use wasmtime_wasi::{HostMonotonicClock, HostWallClock, WasiCtx, WasiCtxView, WasiView};

use crate::state::HostState;

/// What is kept of a call's output; the rest is dropped, as the log's bound would drop it.
const OUTPUT_BYTES: usize = 64 << 10;
/// The most random bytes of one request.
const RANDOM_BYTES: u64 = 1 << 20;
/// Open resources (streams, pollables) of one instance; interpreters have a handful.
const RESOURCES: usize = 10_000;
/// How far a look at the clock moves it, in nanoseconds, so that loops which wait for it end.
const LOOK_NS: u64 = 1_000;

/// The virtual world of one instance.
pub(crate) struct Wasi {
    context: WasiCtx,
    table: ResourceTable,
    clock: VirtualClock,
    output: Output,
}

impl Wasi {
    pub(crate) fn new(seed: u64) -> Self {
        let clock = VirtualClock::default();
        let output = Output::default();
        let context = WasiCtx::builder()
            .stdout(output.clone())
            .stderr(output.clone())
            .secure_random(SplitMix(seed))
            .insecure_random(SplitMix(!seed))
            .insecure_random_seed(u128::from(seed))
            .max_random_size(RANDOM_BYTES)
            .wall_clock(clock.clone())
            .monotonic_clock(clock.clone())
            .allow_tcp(false)
            .allow_udp(false)
            .allow_ip_name_lookup(false)
            .build();
        let mut table = ResourceTable::new();
        table.set_max_capacity(RESOURCES);
        Self { context, table, clock, output }
    }

    /// The lines that it wrote.
    pub(crate) fn take_output(&mut self) -> Vec<String> {
        let bytes = std::mem::take(&mut *self.output.lock());
        if bytes.is_empty() {
            return Vec::new();
        }
        let bytes: Vec<u8> = bytes.into();
        String::from_utf8_lossy(&bytes).lines().filter(|l| !l.trim().is_empty()).map(str::to_owned).collect()
    }
}

impl WasiView for HostState {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        // The seed is that of an instance which is not a subtask; subtasks set theirs before.
        let wasi = self.wasi.get_or_insert_with(|| Wasi::new(0));
        WasiCtxView { ctx: &mut wasi.context, table: &mut wasi.table }
    }
}

/// Adds WASI to a linker.
pub(crate) fn link(linker: &mut Linker<HostState>) -> wasmtime::Result<()> {
    wasmtime_wasi::p2::add_to_linker_sync(linker)?;
    // Wasmtime's sleeps are real ones.
    linker.allow_shadowing(true);
    monotonic_clock::add_to_linker::<HostState, Sleepless>(linker, |state| {
        let wasi = state.wasi.get_or_insert_with(|| Wasi::new(0));
        View { clock: &wasi.clock, table: &mut wasi.table }
    })?;
    linker.allow_shadowing(false);
    Ok(())
}

struct Sleepless;

struct View<'a> {
    clock: &'a VirtualClock,
    table: &'a mut ResourceTable,
}

impl HasData for Sleepless {
    type Data<'a> = View<'a>;
}

impl monotonic_clock::Host for View<'_> {
    fn now(&mut self) -> wasmtime::Result<u64> {
        Ok(HostMonotonicClock::now(self.clock))
    }

    fn resolution(&mut self) -> wasmtime::Result<u64> {
        Ok(LOOK_NS)
    }

    fn subscribe_instant(&mut self, when: u64) -> wasmtime::Result<Resource<DynPollable>> {
        self.clock.0.fetch_max(when, Ordering::Relaxed);
        let over = self.table.push(Over)?;
        subscribe(self.table, over)
    }

    fn subscribe_duration(&mut self, duration: u64) -> wasmtime::Result<Resource<DynPollable>> {
        let when = self.clock.0.load(Ordering::Relaxed).saturating_add(duration);
        self.subscribe_instant(when)
    }
}

/// A sleep that is over.
struct Over;

#[wasmtime_wasi::async_trait]
impl Pollable for Over {
    async fn ready(&mut self) {}
}

/// Nanoseconds since 1970, which is when every instance starts. It moves when it is looked at and when one sleeps.
#[derive(Clone, Debug, Default)]
struct VirtualClock(Arc<AtomicU64>);

impl HostMonotonicClock for VirtualClock {
    fn resolution(&self) -> u64 {
        LOOK_NS
    }

    fn now(&self) -> u64 {
        self.0.fetch_add(LOOK_NS, Ordering::Relaxed)
    }
}

impl HostWallClock for VirtualClock {
    fn resolution(&self) -> Duration {
        Duration::from_nanos(LOOK_NS)
    }

    fn now(&self) -> Duration {
        Duration::from_nanos(HostMonotonicClock::now(self))
    }
}

/// Sebastiano Vigna's splitmix64: plenty for hash seeds and shuffles, and the same on every machine.
struct SplitMix(u64);

impl TryRng for SplitMix {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        self.try_next_u64().map(|n| (n >> 32) as u32)
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Ok(z ^ (z >> 31))
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        for chunk in bytes.chunks_mut(8) {
            let next = self.try_next_u64()?.to_le_bytes();
            chunk.iter_mut().zip(next).for_each(|(to, from)| *to = from);
        }
        Ok(())
    }
}

/// Standard output and error: a bounded buffer that becomes log messages after the call.
#[derive(Clone, Debug, Default)]
struct Output(Arc<Mutex<VecDeque<u8>>>);

impl Output {
    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl IsTerminal for Output {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Output {
    fn async_stream(&self) -> Box<dyn tokio::io::AsyncWrite + Send + Sync> {
        // Only WASI 0.3 takes this one, and that is not linked.
        Box::new(tokio::io::sink())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for Output {
    async fn ready(&mut self) {}
}

impl OutputStream for Output {
    fn write(&mut self, bytes: bytes::Bytes) -> StreamResult<()> {
        let mut kept = self.lock();
        let room = OUTPUT_BYTES.saturating_sub(kept.len());
        kept.extend(bytes.iter().take(room));
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        // More than it keeps, so that nobody waits for room.
        Ok(OUTPUT_BYTES)
    }
}
