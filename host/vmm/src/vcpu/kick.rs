//! Getting a vCPU out of the guest: a signal whose handler sets the `immediate_exit` flag of the thread's own vCPU.
//!
//! A signal that comes just before `KVM_RUN` would be lost if it only interrupted; the flag makes that `KVM_RUN`
//! return at once. The handler touches nothing but the flag.

use std::cell::Cell;
use std::os::unix::thread::JoinHandleExt;
use std::ptr;
use std::thread::JoinHandle;

use kvm_ioctls::VcpuFd;

thread_local! {
    static FLAG: Cell<*mut u8> = const { Cell::new(ptr::null_mut()) };
}

/// The first real-time signal that the C library leaves to programs.
fn signal() -> libc::c_int {
    libc::SIGRTMIN()
}

/// Installs the handler for the process; call it before the first vCPU's thread starts.
pub fn install_handler() -> std::io::Result<()> {
    // SAFETY: all-zero is a valid sigaction; the handler is async-signal-safe, as said above.
    let result = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_kick as *const () as usize;
        libc::sigaction(signal(), &action, ptr::null_mut())
    };
    match result {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// Makes kicks of this thread reach `vcpu`, until [`release`].
pub fn bind(vcpu: &mut VcpuFd) {
    let flag = ptr::from_mut(&mut vcpu.get_kvm_run().immediate_exit);
    FLAG.with(|cell| cell.set(flag));
}

/// Makes kicks of this thread do nothing; call it before its vCPU is dropped.
pub fn release() {
    FLAG.with(|cell| cell.set(ptr::null_mut()));
}

/// Kicks the thread's vCPU out of the guest, or keeps it from entering once.
pub fn kick(thread: &JoinHandle<()>) {
    // SAFETY: the handle keeps the thread's id valid; a thread that has ended is not signalled.
    unsafe { libc::pthread_kill(thread.as_pthread_t(), signal()) };
}

extern "C" fn on_kick(_signal: libc::c_int) {
    FLAG.with(|cell| {
        let flag = cell.get();
        if !flag.is_null() {
            // SAFETY: points into the mapping of this thread's vCPU, which lives until `release`; one byte, volatile,
            // because the kernel reads it.
            unsafe { flag.write_volatile(1) };
        }
    });
}
