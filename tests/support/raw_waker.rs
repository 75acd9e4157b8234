//! A waker that runs code of the test, which may panic, in its clone, wake and drop.
//!
//! `std::task::Wake` counts references itself, so a clone or a drop of its wakers can neither panic
//! nor run code of the test. Only a `RawWakerVTable` allows this, and its functions are unsafe.
//! This is the only file of the repository that may contain unsafe code.
#![allow(unsafe_code, reason = "a clone that panics needs a raw vtable")]

use std::sync::Arc;
use std::task::{RawWaker, RawWakerVTable, Waker};

/// An operation on a waker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WakerCall {
    Clone,
    Wake,
    Drop,
}

/// The code that a waker runs.
pub(crate) trait WakerCode: Send + Sync + 'static {
    /// Runs for each operation on the waker. May panic.
    fn call(&self, call: WakerCall);
}

/// Returns a waker that is equal only to its clones.
pub(crate) fn raw_waker<C: WakerCode>(code: Arc<C>) -> Waker {
    let data = Arc::into_raw(Arc::new(code)).cast();
    // SAFETY: `data` is one reference to an `Arc<C>` in an `Arc`, as each function of the vtable
    // expects. `C` is `Send` and `Sync`, and so is the waker.
    unsafe { Waker::from_raw(RawWaker::new(data, table::<C>())) }
}

fn table<C: WakerCode>() -> &'static RawWakerVTable {
    &const { RawWakerVTable::new(clone::<C>, wake::<C>, wake_by_ref::<C>, drop_waker::<C>) }
}

/// SAFETY: `data` comes from `raw_waker`, and its reference has not been released.
unsafe fn code<'a, C: WakerCode>(data: *const ()) -> &'a C {
    unsafe { &*data.cast::<Arc<C>>() }
}

unsafe fn clone<C: WakerCode>(data: *const ()) -> RawWaker {
    unsafe {
        code::<C>(data).call(WakerCall::Clone);
        Arc::increment_strong_count(data.cast::<Arc<C>>());
    }
    RawWaker::new(data, table::<C>())
}

unsafe fn wake<C: WakerCode>(data: *const ()) {
    // Releases the reference, also on a panic.
    let data = unsafe { Arc::from_raw(data.cast::<Arc<C>>()) };
    data.call(WakerCall::Wake);
}

unsafe fn wake_by_ref<C: WakerCode>(data: *const ()) {
    unsafe { code::<C>(data) }.call(WakerCall::Wake);
}

unsafe fn drop_waker<C: WakerCode>(data: *const ()) {
    let data = unsafe { Arc::from_raw(data.cast::<Arc<C>>()) };
    data.call(WakerCall::Drop);
}
