//! A waker that runs code of the test, which may panic, in its clone, wake and drop.
//!
//! `std::task::Wake` counts the references of its wakers itself, so that a clone or a drop of one can
//! neither panic nor run code. Only a table of raw functions can, and its functions are unsafe: this is the
//! one file of the repository that may contain unsafe code.
#![allow(unsafe_code, reason = "a clone that panics needs a raw table of functions")]

use std::sync::Arc;
use std::task::{RawWaker, RawWakerVTable, Waker};

/// What is done with a waker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WakerCall {
    Clone,
    Wake,
    Drop,
}

/// The code of a waker.
pub(crate) trait WakerCode: Send + Sync + 'static {
    /// May panic.
    fn call(&self, call: WakerCall);
}

/// Returns a waker that is equal to no other one but its clones.
pub(crate) fn raw_waker<C: WakerCode>(code: Arc<C>) -> Waker {
    let data = Arc::into_raw(Arc::new(code)).cast();
    // SAFETY: `data` is one reference to an `Arc<C>` in an `Arc`, as each function of the table expects.
    // `C` is `Send` and `Sync`, and so is the waker.
    unsafe { Waker::from_raw(RawWaker::new(data, table::<C>())) }
}

fn table<C: WakerCode>() -> &'static RawWakerVTable {
    &const { RawWakerVTable::new(clone::<C>, wake::<C>, wake_by_ref::<C>, drop_waker::<C>) }
}

/// SAFETY: `data` comes from `raw_waker`, and its reference is not used up.
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
    // Uses up the reference, also in a panic.
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
