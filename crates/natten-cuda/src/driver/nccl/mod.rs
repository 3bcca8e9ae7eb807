//! An [`Exchange`] of device tensors over NCCL: ranks of one process or of many, of one host or of many.
//!
//! Transfers run on a stream of their own, between two events: they begin after what the backend's stream was given before, and that
//! stream waits for them before what it is given after. No call waits for the device; only the first messages between two ranks
//! make the host wait until these are connected, for as long as [`Nccl::patience`] says.
//!
//! None of this has run on a GPU yet.

mod library;

use std::cell::{Cell, RefCell};
use std::ffi::c_int;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cudarc::driver::{CudaEvent, CudaStream, DriverError};
use natten_core::exchange::{MessagesOn, Ranks, check_messages};
use natten_core::{Element, Exchange, ExchangeError, InputElement};

use super::{Driver, names};
use crate::cuda::Cuda;
use crate::device::Device;
use crate::error::{CudaError, DeviceError};
use library::{BYTE, Code, Comm, Config, IN_PROGRESS, SUCCESS, check};

pub use library::{NcclError, NcclId, NcclLibrary};

/// How long a rank waits for others to connect unless told otherwise.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is still under way is asked for so often.
const PAUSE: Duration = Duration::from_micros(50);

/// A rank's communicator, and the stream of its transfers. One thread at a time uses it. What is under way when it is dropped may
/// never arrive: [`Ranks::wait`] comes before.
#[derive(Debug)]
pub struct Nccl {
    library: NcclLibrary,
    comm: Comm,
    is_own: bool,
    rank: usize,
    ranks: usize,
    stream: Arc<CudaStream>,
    patience: Duration,
    may_abort: bool,
    is_aborted: Cell<bool>,
    /// The end of the last transfers.
    last: RefCell<Option<CudaEvent>>,
    /// What failed first.
    failed: RefCell<Option<String>>,
}

// SAFETY: a communicator may be used from any thread, one at a time, which the cells see to.
unsafe impl Send for Nccl {}

impl Nccl {
    /// Connects one of `ranks` ranks, which all call this at about the same time with the id that one of them made. `stream`, of this
    /// rank's device, is for transfers and no stream that calls run on: else nothing would be computed meanwhile.
    ///
    /// # Errors
    /// [`ExchangeError::TimedOut`] where not all ranks come within a minute, [`ExchangeError::Rank`], [`ExchangeError::Device`].
    pub fn connect(
        library: &NcclLibrary,
        stream: Arc<CudaStream>,
        (rank, ranks): (usize, usize),
        id: NcclId,
    ) -> Result<Self, ExchangeError> {
        let count = |number: usize| c_int::try_from(number).ok();
        let (Some(of), Some(number)) = (count(ranks), count(rank).filter(|_| rank < ranks)) else {
            return Err(ExchangeError::Rank { found: rank, rank, ranks });
        };
        bind(&stream)?;
        let (mut comm, mut config) = (std::ptr::null_mut(), Config::not_blocking());
        // SAFETY: handle and configuration live through the call, and the stream's context is current.
        let code = unsafe { (library.0.init_rank)(&mut comm, of, id, number, &mut config) };
        check("connecting ranks", code)?;
        let mut nccl = Self::of(library, comm, stream, (rank, ranks));
        (nccl.is_own, nccl.may_abort) = (true, true);
        nccl.settle("connecting ranks")?;
        Ok(nccl)
    }

    /// The communicator of someone else's, who keeps it: it is never destroyed here, and aborted only if
    /// [`Nccl::allow_abort`] says so.
    ///
    /// # Safety
    /// `comm` is an `ncclComm_t` of this library and of the device of `stream`. It outlives the value returned, and nobody else
    /// calls it, or collectives of other communicators that all ranks do not order alike, while an exchange does. If its calls do
    /// not block, it may be aborted ([`Nccl::allow_abort`]), or tensors of a call that fails stay allocated until it is.
    ///
    /// # Errors
    /// [`ExchangeError::Device`].
    pub unsafe fn of_raw(
        library: &NcclLibrary,
        comm: *mut std::ffi::c_void,
        stream: Arc<CudaStream>,
    ) -> Result<Self, ExchangeError> {
        let (mut rank, mut ranks) = (0, 0);
        // SAFETY: the communicator is alive by the caller, and the numbers live through the calls.
        let codes = unsafe { [(library.0.user_rank)(comm, &mut rank), (library.0.count)(comm, &mut ranks)] };
        codes.into_iter().try_for_each(|code| check("asking for the rank", code))?;
        Ok(Self::of(library, comm, stream, (rank as usize, ranks as usize)))
    }

    fn of(library: &NcclLibrary, comm: Comm, stream: Arc<CudaStream>, (rank, ranks): (usize, usize)) -> Self {
        Nccl {
            library: library.clone(),
            comm,
            is_own: false,
            rank,
            ranks,
            stream,
            patience: PATIENCE,
            may_abort: false,
            is_aborted: Cell::new(false),
            last: RefCell::new(None),
            failed: RefCell::new(None),
        }
    }

    /// The same rank, whose calls wait so long for another to connect before they give up.
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Whether the communicator may be aborted once something has failed: its kernels end then, and the streams that wait for
    /// them go on, with whatever had arrived. One that may not be stays as it is, and what waits for it on the device does. That
    /// is for communicators of someone else's, which are not aborted unless this says so; its own are, whatever this says.
    pub fn allow_abort(mut self, may_abort: bool) -> Self {
        self.may_abort = may_abort || self.is_own;
        self
    }

    /// Whether it was aborted. The handle of a communicator that was is dead, also for whom it belongs to.
    pub fn is_aborted(&self) -> bool {
        self.is_aborted.get()
    }

    fn expect_usable(&self) -> Result<(), ExchangeError> {
        match &*self.failed.borrow() {
            Some(reason) => Err(ExchangeError::Unusable { rank: self.rank, reason: reason.clone() }),
            None => Ok(()),
        }
    }

    /// Keeps that this rank has failed, and ends what is under way, where that is allowed.
    fn fail(&self, error: ExchangeError) -> ExchangeError {
        self.failed.borrow_mut().get_or_insert_with(|| error.to_string());
        if self.may_abort && !self.is_aborted.replace(true) {
            // SAFETY: the communicator is alive, and not called again. That aborting fails too leaves nothing to be done.
            let _ = unsafe { (self.library.0.abort)(self.comm) };
        }
        error
    }

    /// What the communicator says of itself, unless it has failed and so may be no more.
    fn state(&self) -> Result<Code, ExchangeError> {
        self.expect_usable()?;
        let mut state = SUCCESS;
        // SAFETY: the communicator is alive, and the number lives through the call.
        check("asking for errors", unsafe { (self.library.0.async_error)(self.comm, &mut state) })?;
        check("exchanging", state)?;
        Ok(state)
    }

    /// Waits until a call that goes on has been taken in, as NCCL asks before the next.
    fn settle(&self, operation: &'static str) -> Result<(), ExchangeError> {
        let began = Instant::now();
        loop {
            match self.state() {
                Ok(IN_PROGRESS) => {}
                Ok(_) => return Ok(()),
                Err(ExchangeError::Device { source, .. }) => {
                    return Err(self.fail(ExchangeError::Device { operation, source }));
                }
                Err(error) => return Err(self.fail(error)),
            }
            let waited = began.elapsed();
            if waited >= self.patience {
                return Err(self.fail(ExchangeError::TimedOut { rank: self.rank, other: None, waited }));
            }
            // Ranks that are connected take messages in at once.
            if waited < PAUSE { std::hint::spin_loop() } else { std::thread::sleep(PAUSE) }
        }
    }

    /// Queues all messages at once.
    fn post<E: InputElement>(&self, messages: &MessagesOn<'_, Cuda<Driver>, E>) -> Result<(), ExchangeError> {
        let (functions, stream) = (&self.library.0, self.stream.cu_stream().cast());
        let bytes = |elements: usize| elements * E::ELEMENT_TYPE.size_bytes();
        // SAFETY: a call without arguments.
        check("beginning a group", unsafe { (functions.group_start)() })?;
        let sends = messages.sends.iter().filter(|message| !message.view.layout.is_empty());
        let receives = messages.receives.iter().filter(|message| !message.view.layout.is_empty());
        let sends = sends.map(|message| {
            let (from, length) = (message.view.address, bytes(message.view.layout.len()));
            // SAFETY: so many bytes of the device are the view's, which is contiguous and borrowed until the backend's stream waits
            // for the transfer; the communicator and its stream are alive.
            let code = unsafe {
                (functions.send)(from as *const _, length, BYTE, message.rank as c_int, self.comm, stream)
            };
            check("sending", code)
        });
        let receives = receives.map(|message| {
            let (to, length) = (message.view.address, bytes(message.view.layout.len()));
            // SAFETY: as above, and nobody else has the view.
            let code = unsafe {
                (functions.receive)(to as *mut _, length, BYTE, message.rank as c_int, self.comm, stream)
            };
            check("receiving", code)
        });
        let posted = sends.chain(receives).collect::<Result<Vec<()>, _>>();
        // A group that was begun is ended in any case.
        // SAFETY: a call without arguments.
        let ended = check("ending a group", unsafe { (functions.group_end)() });
        posted.and(ended)
    }
}

impl Drop for Nccl {
    /// Aborts a communicator of its own, and with it what is still under way: destroying one may wait for ranks that are gone.
    fn drop(&mut self) {
        if self.is_own && !self.is_aborted.get() {
            // SAFETY: the communicator is ours, alive, and not called again.
            let _ = unsafe { (self.library.0.abort)(self.comm) };
        }
    }
}

impl Ranks for Nccl {
    fn rank(&self) -> usize {
        self.rank
    }

    fn ranks(&self) -> usize {
        self.ranks
    }

    fn poll(&self) -> Result<bool, ExchangeError> {
        self.expect_usable()?;
        let state = self.state().map_err(|error| self.fail(error))?;
        let last = self.last.borrow();
        let is_done = match &*last {
            Some(event) => {
                bind(&self.stream).and_then(|()| of_driver("asking for an event", event.try_is_complete()))
            }
            None => Ok(true),
        };
        Ok(is_done.map_err(|error| self.fail(error))? && state == SUCCESS)
    }

    fn wait(&self, timeout: Duration) -> Result<(), ExchangeError> {
        let began = Instant::now();
        while !self.poll()? {
            let waited = began.elapsed();
            if waited >= timeout {
                return Err(self.fail(ExchangeError::TimedOut { rank: self.rank, other: None, waited }));
            }
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }
}

impl Exchange<Cuda<Driver>> for Nccl {
    fn exchange<E: Element, R>(
        &self,
        backend: &Cuda<Driver>,
        messages: MessagesOn<'_, Cuda<Driver>, E>,
        meanwhile: impl FnOnce() -> R,
    ) -> Result<R, ExchangeError> {
        self.expect_usable()?;
        check_messages::<Cuda<Driver>, E>(&messages, self.rank, self.ranks)?;
        self.expect_here(backend, &messages)?;
        if messages.is_empty() {
            return Ok(meanwhile());
        }
        let calls = backend.device().stream();
        bind(calls)?;
        of_driver("letting transfers wait for calls", self.stream.join(calls))?;
        // From here on the stream of calls has to wait for that of transfers, whatever happens: the views are borrowed until then.
        let join = Join { calls, nccl: self };
        self.post::<E>(&messages).map_err(|error| self.fail(error))?;
        let result = meanwhile();
        join.now()?;
        Ok(result)
    }
}

impl Nccl {
    /// Whether all views, and the stream of transfers, are of the backend's device.
    fn expect_here<E: InputElement>(
        &self,
        backend: &Cuda<Driver>,
        messages: &MessagesOn<'_, Cuda<Driver>, E>,
    ) -> Result<(), ExchangeError> {
        let expected = backend.device().id();
        let sends = messages.sends.iter().map(|message| message.view.device);
        let receives = messages.receives.iter().map(|message| message.view.device);
        let stream = self.stream.context().cu_ctx() as u64;
        match [stream].into_iter().chain(sends).chain(receives).find(|&found| found != expected) {
            Some(found) => {
                let source = Box::new(CudaError::WrongDevice { expected, found });
                Err(ExchangeError::Device { operation: "exchanging", source })
            }
            None => Ok(()),
        }
    }
}

/// Makes the stream of calls wait for that of transfers, at the latest when it is dropped.
struct Join<'a> {
    calls: &'a Arc<CudaStream>,
    nccl: &'a Nccl,
}

impl Join<'_> {
    fn now(self) -> Result<(), ExchangeError> {
        let (joined, nccl) = (self.join(), self.nccl);
        std::mem::forget(self);
        joined.map_err(|error| nccl.fail(error))
    }

    fn join(&self) -> Result<(), ExchangeError> {
        // Transfers are on their stream only once the communicator has taken them in.
        let settled = self.nccl.settle("exchanging");
        settled.and(self.wait_on_device())
    }

    fn wait_on_device(&self) -> Result<(), ExchangeError> {
        bind(self.calls)?;
        let end = of_driver("recording the end of transfers", self.nccl.stream.record_event(None))?;
        of_driver("letting calls wait for transfers", self.calls.wait(&end))?;
        *self.nccl.last.borrow_mut() = Some(end);
        Ok(())
    }
}

impl Drop for Join<'_> {
    fn drop(&mut self) {
        // The failure that led here is told already.
        let _ = self.join();
    }
}

fn bind(stream: &Arc<CudaStream>) -> Result<(), ExchangeError> {
    of_driver("making the context current", stream.context().bind_to_thread())
}

fn of_driver<T>(operation: &'static str, result: Result<T, DriverError>) -> Result<T, ExchangeError> {
    result.map_err(|DriverError(code)| {
        let code = code as u32;
        let source = Box::new(DeviceError::Driver { operation, code, name: names::of(code) });
        ExchangeError::Device { operation, source }
    })
}
