"""Numbers and layouts are those that a C compiler finds in the system's headers."""

import ctypes
import re
import struct
import subprocess
from pathlib import Path

import pytest

from needs import needs
from woodfrog.kernel import (
    bpf,
    inotify,
    mounts,
    namespaces,
    pagemap,
    process,
    ptrace,
    syscalls,
    userfaultfd,
)
from woodfrog.kernel.abi import x86_compat
from woodfrog.kernel.abi.x86_64 import SYS, call_name
from woodfrog.kernel.netlink import messages, nf_messages, nftables, sock_diag
from woodfrog.remote import seccomp, timed_calls
from woodfrog.resources.files import inet, socket_options, tcp_connection

pytestmark = needs("command gcc")

# The headers of Debian 12 are those of Linux 6.1: set_mempolicy_home_node is their last call.
NEWER_THAN_HEADERS = 451
NUMBERS = {name: value for name, value in vars(SYS).items() if name.isupper()}

# C expression: ours. Those whose macro the headers don't have are left out.
CONSTANTS = {
    "PTRACE_PEEKUSER": ptrace._PEEKUSER,
    "PTRACE_CONT": ptrace._CONT,
    "PTRACE_DETACH": ptrace._DETACH,
    "PTRACE_SYSCALL": ptrace._SYSCALL,
    "PTRACE_SETOPTIONS": ptrace._SETOPTIONS,
    "PTRACE_GETEVENTMSG": ptrace._GETEVENTMSG,
    "PTRACE_GETREGSET": ptrace._GETREGSET,
    "PTRACE_SETREGSET": ptrace._SETREGSET,
    "PTRACE_SEIZE": ptrace._SEIZE,
    "PTRACE_INTERRUPT": ptrace._INTERRUPT,
    "PTRACE_PEEKSIGINFO": ptrace._PEEKSIGINFO,
    "PTRACE_GETSIGMASK": ptrace._GETSIGMASK,
    "PTRACE_SETSIGMASK": ptrace._SETSIGMASK,
    "PTRACE_SECCOMP_GET_FILTER": ptrace._SECCOMP_GET_FILTER,
    "PTRACE_SECCOMP_GET_METADATA": ptrace._SECCOMP_GET_METADATA,
    "PTRACE_GET_RSEQ_CONFIGURATION": ptrace._GET_RSEQ_CONFIGURATION,
    "PTRACE_EVENT_STOP": ptrace._EVENT_STOP,
    "PTRACE_O_TRACEFORK": ptrace.O_TRACEFORK,
    "PTRACE_O_TRACEVFORK": ptrace.O_TRACEVFORK,
    "PTRACE_O_TRACECLONE": ptrace.O_TRACECLONE,
    "PTRACE_O_TRACEEXEC": ptrace.O_TRACEEXEC,
    "PTRACE_O_TRACESYSGOOD": ptrace.O_TRACESYSGOOD,
    "PTRACE_O_EXITKILL": ptrace.O_EXITKILL,
    "PTRACE_O_SUSPEND_SECCOMP": ptrace.O_SUSPEND_SECCOMP,
    "NT_PRSTATUS": ptrace.NT_PRSTATUS,
    "NT_X86_XSTATE": ptrace.NT_X86_XSTATE,
    "__WALL": ptrace.WALL,
    "AT_FDCWD": mounts.AT_FDCWD,
    "AT_EMPTY_PATH": mounts.AT_EMPTY_PATH,
    "RESOLVE_NO_MAGICLINKS": mounts.RESOLVE_NO_MAGICLINKS,
    "RESOLVE_NO_SYMLINKS": mounts.RESOLVE_NO_SYMLINKS,
    "RESOLVE_IN_ROOT": mounts.RESOLVE_IN_ROOT,
    "F_DUPFD": syscalls.F_DUPFD,
    "F_SETFL": syscalls.F_SETFL,
    "CLONE_NEWTIME": namespaces.CLONE_NEWTIME,
    "CLONE_NEWNS": namespaces.CLONE_NEWNS,
    "CLONE_NEWCGROUP": namespaces.CLONE_NEWCGROUP,
    "CLONE_NEWUTS": namespaces.CLONE_NEWUTS,
    "CLONE_NEWIPC": namespaces.CLONE_NEWIPC,
    "CLONE_NEWUSER": namespaces.CLONE_NEWUSER,
    "CLONE_NEWPID": namespaces.CLONE_NEWPID,
    "CLONE_NEWNET": namespaces.CLONE_NEWNET,
    "PR_SET_PDEATHSIG": process.PR_SET_PDEATHSIG,
    "PR_SET_DUMPABLE": process.PR_SET_DUMPABLE,
    "PR_SET_KEEPCAPS": process.PR_SET_KEEPCAPS,
    "PR_SET_NO_NEW_PRIVS": process.PR_SET_NO_NEW_PRIVS,
    "PR_SET_CHILD_SUBREAPER": process.PR_SET_CHILD_SUBREAPER,
    "CLOSE_RANGE_CLOEXEC": process.CLOSE_RANGE_CLOEXEC,
    "PIDFD_GET_INFO": process.PIDFD_GET_INFO,
    "PAGEMAP_SCAN": pagemap._PAGEMAP_SCAN,
    "PAGE_IS_FILE": pagemap._IS_FILE,
    "PAGE_IS_PRESENT": pagemap._IS_PRESENT,
    "PAGE_IS_SWAPPED": pagemap._IS_SWAPPED,
    "PAGE_IS_PFNZERO": pagemap._IS_PFNZERO,
    "PAGE_IS_GUARD": pagemap._IS_GUARD,
    "IN_MOVED_TO": inotify.IN_MOVED_TO,
    "IN_CREATE": inotify.IN_CREATE,
    "IN_DELETE": inotify.IN_DELETE,
    "IN_DELETE_SELF": inotify.IN_DELETE_SELF,
    "UFFD_API": userfaultfd._API,
    "UFFD_EVENT_PAGEFAULT": userfaultfd.PAGEFAULT,
    "UFFD_EVENT_FORK": userfaultfd.FORK,
    "UFFD_EVENT_REMAP": userfaultfd.REMAP,
    "UFFD_EVENT_REMOVE": userfaultfd.REMOVE,
    "UFFD_EVENT_UNMAP": userfaultfd.UNMAP,
    "UFFD_FEATURE_EVENT_FORK": userfaultfd._FEATURE_EVENT_FORK,
    "UFFD_FEATURE_EVENT_REMAP": userfaultfd._FEATURE_EVENT_REMAP,
    "UFFD_FEATURE_EVENT_REMOVE": userfaultfd._FEATURE_EVENT_REMOVE,
    "UFFD_FEATURE_EVENT_UNMAP": userfaultfd._FEATURE_EVENT_UNMAP,
    "UFFDIO_REGISTER_MODE_MISSING": userfaultfd._REGISTER_MODE_MISSING,
    "UFFDIO_API": userfaultfd._IOCTL_API,
    "UFFDIO_REGISTER": userfaultfd._IOCTL_REGISTER,
    "UFFDIO_WAKE": userfaultfd._IOCTL_WAKE,
    "UFFDIO_COPY": userfaultfd._IOCTL_COPY,
    "UFFDIO_ZEROPAGE": userfaultfd._IOCTL_ZEROPAGE,
    "NETLINK_SOCK_DIAG": sock_diag._NETLINK_SOCK_DIAG,
    "SOCK_DIAG_BY_FAMILY": sock_diag._SOCK_DIAG_BY_FAMILY,
    "NLM_F_REQUEST": messages.NLM_F_REQUEST,
    "NLM_F_ACK": messages.NLM_F_ACK,
    "NLM_F_DUMP": messages.NLM_F_DUMP,
    "NLM_F_CREATE": messages.NLM_F_CREATE,
    "NLM_F_APPEND": messages.NLM_F_APPEND,
    "NLMSG_ERROR": messages.NLMSG_ERROR,
    "NLMSG_DONE": messages.NLMSG_DONE,
    "NLA_F_NESTED": messages._NESTED,
    "NETLINK_NETFILTER": nf_messages.NETLINK_NETFILTER,
    "NFNL_SUBSYS_NFTABLES << 8": nf_messages.SUBSYSTEM,
    "NFNL_MSG_BATCH_BEGIN": nftables._BATCH_BEGIN,
    "NFNL_MSG_BATCH_END": nftables._BATCH_END,
    "TCP_REPAIR": tcp_connection._TCP_REPAIR,
    "TCP_REPAIR_QUEUE": tcp_connection._TCP_REPAIR_QUEUE,
    "TCP_QUEUE_SEQ": tcp_connection._TCP_QUEUE_SEQ,
    "TCP_REPAIR_OPTIONS": tcp_connection._TCP_REPAIR_OPTIONS,
    "TCP_TIMESTAMP": tcp_connection._TCP_TIMESTAMP,
    "TCP_REPAIR_WINDOW": tcp_connection._TCP_REPAIR_WINDOW,
    "TCP_REPAIR_OFF_NO_WP": tcp_connection._REPAIR_OFF_QUIETLY,
    "SO_BUF_LOCK": socket_options.SO_BUF_LOCK,
    "SO_MARK": inet._SO_MARK,
    "SIOCINQ": tcp_connection._SIOCINQ,
    "SIOCOUTQ": tcp_connection._SIOCOUTQ,
    "SIOCOUTQNSD": tcp_connection._SIOCOUTQNSD,
    "UDIAG_SHOW_NAME|UDIAG_SHOW_VFS|UDIAG_SHOW_PEER|UDIAG_SHOW_ICONS|UDIAG_SHOW_RQLEN": (
        sock_diag._UDIAG_SHOW
    ),
    "AUDIT_ARCH_X86_64": bpf.AUDIT_ARCH_X86_64,
    "SECCOMP_RET_ALLOW": seccomp._ALLOW,
    "SECCOMP_RET_LOG": seccomp._LOG,
    "BPF_LD | BPF_W | BPF_ABS": bpf._LOAD,
    "BPF_ALU | BPF_AND | BPF_K": bpf._AND,
    "BPF_JMP | BPF_JA": bpf._JUMP,
    "BPF_JMP | BPF_JEQ | BPF_K": bpf._JEQ,
    "BPF_JMP | BPF_JGT | BPF_K": bpf._JGT,
    "BPF_JMP | BPF_JGE | BPF_K": bpf._JGE,
    "BPF_RET | BPF_K": bpf._RETURN,
    "BPF_MAXINSNS": bpf._MAX_INSTRUCTIONS,
    "SECCOMP_SET_MODE_FILTER": bpf.SET_MODE_FILTER,
    "BPF_LD": seccomp._LD,
    "BPF_LDX": seccomp._LDX,
    "BPF_ST": seccomp._ST,
    "BPF_STX": seccomp._STX,
    "BPF_ALU": seccomp._ALU,
    "BPF_JMP": seccomp._JMP,
    "BPF_RET": seccomp._RET,
    "BPF_MISC": seccomp._MISC,
    "TIMER_ABSTIME": timed_calls._TIMER_ABSTIME,
    "FUTEX_WAIT": timed_calls._FUTEX_WAIT,
    "FUTEX_CMD_MASK & 0x7f": timed_calls._FUTEX_COMMANDS,
}
# These are enumerators, not macros.
ENUMERATORS = {
    "UNIX_DIAG_NAME": sock_diag._UNIX_NAME,
    "UNIX_DIAG_VFS": sock_diag._UNIX_VFS,
    "UNIX_DIAG_PEER": sock_diag._UNIX_PEER,
    "UNIX_DIAG_ICONS": sock_diag._UNIX_ICONS,
    "UNIX_DIAG_RQLEN": sock_diag._UNIX_RQLEN,
    "UNIX_DIAG_SHUTDOWN": sock_diag._UNIX_SHUTDOWN,
    "TCP_ESTABLISHED": sock_diag.TCP_ESTABLISHED,
    "TCP_CLOSE": sock_diag.TCP_CLOSE,
    "TCP_LISTEN": sock_diag.TCP_LISTEN,
    "TCP_SYN_SENT": sock_diag.TCP_SYN_SENT,
    "TCP_SYN_RECV": sock_diag.TCP_SYN_RECV,
    "TCP_FIN_WAIT1": sock_diag.TCP_FIN_WAIT1,
    "TCP_FIN_WAIT2": sock_diag.TCP_FIN_WAIT2,
    "TCP_CLOSE_WAIT": sock_diag.TCP_CLOSE_WAIT,
    "TCP_LAST_ACK": sock_diag.TCP_LAST_ACK,
    "TCP_CLOSING": sock_diag.TCP_CLOSING,
    "INET_DIAG_SHUTDOWN": sock_diag._INET_DIAG_SHUTDOWN,
    "NFT_MSG_NEWTABLE": nf_messages.NEW_TABLE,
    "NFT_MSG_DELTABLE": nftables._DELETE_TABLE,
    "NFT_MSG_NEWCHAIN": nf_messages.NEW_CHAIN,
    "NFT_MSG_NEWRULE": nf_messages.NEW_RULE,
    "NFTA_TABLE_NAME": nftables._TABLE_NAME,
    "NFTA_TABLE_FLAGS": nftables._TABLE_FLAGS,
    "NFTA_CHAIN_TABLE": nftables._CHAIN_TABLE,
    "NFTA_CHAIN_NAME": nftables._CHAIN_NAME,
    "NFTA_CHAIN_HOOK": nftables._CHAIN_HOOK,
    "NFTA_CHAIN_TYPE": nftables._CHAIN_TYPE,
    "NFTA_HOOK_HOOKNUM": nftables._HOOK_NUMBER,
    "NFTA_HOOK_PRIORITY": nftables._HOOK_PRIORITY,
    "NFTA_RULE_TABLE": nftables._RULE_TABLE,
    "NFTA_RULE_CHAIN": nftables._RULE_CHAIN,
    "NFTA_RULE_EXPRESSIONS": nftables._RULE_EXPRESSIONS,
    "NFTA_LIST_ELEM": nftables._LIST_ELEMENT,
    "NFTA_EXPR_NAME": nftables._EXPRESSION_NAME,
    "NFTA_EXPR_DATA": nftables._EXPRESSION_DATA,
    "NFTA_META_DREG": nftables._META_REGISTER,
    "NFTA_META_KEY": nftables._META_KEY,
    "NFTA_PAYLOAD_DREG": nftables._PAYLOAD_REGISTER,
    "NFTA_PAYLOAD_BASE": nftables._PAYLOAD_BASE,
    "NFTA_PAYLOAD_OFFSET": nftables._PAYLOAD_OFFSET,
    "NFTA_PAYLOAD_LEN": nftables._PAYLOAD_LENGTH,
    "NFTA_CMP_SREG": nftables._COMPARE_REGISTER,
    "NFTA_CMP_OP": nftables._COMPARE_OPERATOR,
    "NFTA_CMP_DATA": nftables._COMPARE_DATA,
    "NFTA_IMMEDIATE_DREG": nftables._IMMEDIATE_REGISTER,
    "NFTA_IMMEDIATE_DATA": nftables._IMMEDIATE_DATA,
    "NFTA_DATA_VALUE": nftables._DATA_VALUE,
    "NFTA_DATA_VERDICT": nftables._DATA_VERDICT,
    "NFTA_VERDICT_CODE": nftables._VERDICT_CODE,
    "NFT_REG_1": nftables._REGISTER,
    "NFT_REG_VERDICT": nftables._VERDICT_REGISTER,
    "NFT_CMP_EQ": nftables._EQUALS,
    "NFT_META_MARK": nftables._MARK,
    "NFT_META_NFPROTO": nftables._NFPROTO,
    "NFT_META_L4PROTO": nftables._L4PROTO,
    "NFT_PAYLOAD_NETWORK_HEADER": nftables._NETWORK_HEADER,
    "NFT_PAYLOAD_TRANSPORT_HEADER": nftables._TRANSPORT_HEADER,
    "NF_INET_LOCAL_IN": nftables._LOCAL_IN,
    "NF_INET_LOCAL_OUT": nftables._LOCAL_OUT,
}
# Sizes and offsets that are written as numbers in formats of `struct`.
LAYOUTS = {
    "sizeof(struct user_regs_struct)": ctypes.sizeof(ptrace.Registers),
    **{
        f"offsetof(struct user_regs_struct, {name})": getattr(ptrace.Registers, name).offset
        for name in ptrace._REGISTERS
    },
    "sizeof(struct uffd_msg)": userfaultfd._MESSAGE.size,
    "offsetof(struct uffd_msg, arg)": 8,
    "offsetof(struct uffd_msg, arg.pagefault.address)": 16,
    "offsetof(struct uffd_msg, arg.fork.ufd)": 8,
    "offsetof(struct uffd_msg, arg.remap.to)": 16,
    "offsetof(struct uffd_msg, arg.remap.len)": 24,
    "offsetof(struct uffd_msg, arg.remove.end)": 16,
    "sizeof(struct uffdio_api)": userfaultfd._API_CALL.size,
    "sizeof(struct uffdio_register)": userfaultfd._REGISTER.size,
    "sizeof(struct uffdio_range)": userfaultfd._RANGE.size,
    "sizeof(struct uffdio_copy)": userfaultfd._COPY.size,
    "offsetof(struct uffdio_copy, copy)": 32,
    "sizeof(struct uffdio_zeropage)": userfaultfd._ZEROPAGE.size,
    "offsetof(struct uffdio_zeropage, zeropage)": 24,
    "sizeof(struct iovec)": ctypes.sizeof(ptrace._Iovec),
    "sizeof(siginfo_t)": ptrace.SIGINFO_BYTES,
    "sizeof(struct open_how)": struct.calcsize("3Q"),
    "sizeof(struct clone_args)": struct.calcsize("11Q"),
    "offsetof(struct clone_args, exit_signal)": struct.calcsize("4Q"),
    "offsetof(struct clone_args, set_tid)": struct.calcsize("8Q"),
    "sizeof(stack_t)": struct.calcsize("QiiQ"),
    "offsetof(stack_t, ss_flags)": 8,
    "offsetof(stack_t, ss_size)": 16,
    "sizeof(struct timespec)": timed_calls._TIMESPEC.size,
    "sizeof(struct ptrace_peeksiginfo_args)": 16,
    "sizeof(struct ptrace_rseq_configuration)": 24,
    "offsetof(struct ptrace_rseq_configuration, signature)": 12,
    "sizeof(struct seccomp_metadata)": 16,
    "sizeof(struct seccomp_data)": 64,
    "offsetof(struct seccomp_data, arch)": 4,
    "offsetof(struct seccomp_data, args)": 16,
    "sizeof(struct sock_filter)": seccomp._INSTRUCTION.size,
    "offsetof(struct sock_filter, k)": 4,
    "sizeof(struct nlmsghdr)": messages.HEADER.size,
    "sizeof(struct nlattr)": messages._ATTRIBUTE.size,
    "sizeof(struct unix_diag_req)": struct.calcsize("<BBHIIIII"),
    "sizeof(struct unix_diag_msg)": 16,
    "sizeof(struct inet_diag_req_v2)": struct.calcsize("<BBBBI48x"),
    "sizeof(struct inet_diag_msg)": 52 + struct.calcsize("<5I"),
    "offsetof(struct inet_diag_msg, id.idiag_src)": 8,
    "offsetof(struct inet_diag_msg, id.idiag_dst)": 24,
    "offsetof(struct inet_diag_msg, idiag_expires)": 52,
    "sizeof(struct msghdr)": struct.calcsize("<QIxxxxQQQQi4x"),
}

HEADERS = """
#define _GNU_SOURCE
#include <stddef.h>
#include <stdio.h>
#include <limits.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <time.h>
#include <elf.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <netinet/tcp.h>
#include <linux/audit.h>
#include <linux/close_range.h>
#include <linux/filter.h>
#include <linux/fs.h>
#include <linux/futex.h>
#include <linux/inet_diag.h>
#include <linux/netfilter.h>
#include <linux/netfilter/nf_tables.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netlink.h>
#include <linux/openat2.h>
#include <linux/prctl.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <linux/sock_diag.h>
#include <linux/sockios.h>
#include <linux/types.h>
#include <linux/unix_diag.h>
#include <linux/userfaultfd.h>
"""
# These can't be included together with the C library's own.
KERNEL_HEADERS = """
#include <stddef.h>
#include <stdio.h>
#include <linux/elf.h>
#include <linux/pidfd.h>
#include <linux/ptrace.h>
"""


def told_by_c(directory: Path, headers: str, expressions: dict[str, str]) -> dict[str, int]:
    """Return the value of each expression whose condition, a C macro's name or "", is met."""
    lines = []
    for expression, macro in expressions.items():
        line = f'printf("%lld {expression}\\n", (long long)({expression}));'
        lines.append(f"#ifdef {macro}\n{line}\n#endif" if macro else line)
    source = directory / "tell.c"
    source.write_text(headers + "int main(void) {\n" + "\n".join(lines) + "\n}\n")
    subprocess.run(["gcc", "-w", "-o", str(directory / "tell"), str(source)], check=True)
    told = subprocess.run([str(directory / "tell")], check=True, capture_output=True, text=True)
    pairs = (line.split(" ", 1) for line in told.stdout.splitlines())
    return {expression: int(value) for value, expression in pairs}


def unsigned(values: dict[str, int]) -> dict[str, int]:
    """Return the values as unsigned 32-bit numbers, as which both sides may have them."""
    return {name: value & 0xFFFFFFFF for name, value in values.items()}


def test_constants_are_those_of_the_headers(tmp_path: Path) -> None:
    of_kernel = {name for name in CONSTANTS if name.startswith(("PTRACE_", "NT_", "PIDFD_"))}
    wanted = {name: re.match(r"\w+", name)[0] for name in CONSTANTS}  # type: ignore[index]
    others = {name: macro for name, macro in wanted.items() if name not in of_kernel}
    told = told_by_c(tmp_path, HEADERS, {**others, **dict.fromkeys(ENUMERATORS, "")})
    told |= told_by_c(tmp_path, KERNEL_HEADERS, {name: name for name in of_kernel})
    ours = {**CONSTANTS, **ENUMERATORS}
    assert unsigned(told) == unsigned({name: ours[name] for name in told})
    # What is newer than the headers can't be compared.
    assert len(told) >= len(ours) - 8


def test_layouts_are_those_of_the_headers(tmp_path: Path) -> None:
    of_kernel = {name for name in LAYOUTS if "ptrace_" in name or "seccomp_metadata" in name}
    told = told_by_c(tmp_path, HEADERS, dict.fromkeys(LAYOUTS.keys() - of_kernel, ""))
    told |= told_by_c(tmp_path, KERNEL_HEADERS, dict.fromkeys(of_kernel, ""))
    assert told == LAYOUTS


def test_the_signal_action_is_the_kernels_not_the_c_librarys(tmp_path: Path) -> None:
    headers = "#include <stddef.h>\n#include <stdio.h>\n#include <asm/signal.h>\n"
    expressions = ["sizeof(struct sigaction)"]
    expressions += [f"offsetof(struct sigaction, sa_{f})" for f in ("flags", "restorer", "mask")]
    told = told_by_c(tmp_path, headers, dict.fromkeys(expressions, ""))
    assert list(told.values()) == [32, 8, 16, 24]


def test_call_numbers_are_those_of_the_headers(tmp_path: Path) -> None:
    expressions = {f"__NR_{name.lower()}": f"__NR_{name.lower()}" for name in NUMBERS}
    told = told_by_c(tmp_path, "#include <stdio.h>\n#include <asm/unistd_64.h>\n", expressions)
    ours = {f"__NR_{name.lower()}": value for name, value in NUMBERS.items()}
    assert told == {name: ours[name] for name in told}
    newer = {name for name, value in ours.items() if value >= NEWER_THAN_HEADERS}
    # (Two calls of the kernel's own got numbers that had been left free.)
    assert ours.keys() - told.keys() <= newer | {"__NR_uretprobe", "__NR_uprobe"}


@pytest.mark.parametrize(
    ("header", "table", "bit"),
    [("unistd_32", x86_compat.i386(), 0), ("unistd_x32", x86_compat.x32_own(), 1 << 30)],
)
def test_numbers_of_other_ways_into_the_kernel_are_those_of_the_headers(
    tmp_path: Path, header: str, table: dict[str, int], bit: int
) -> None:
    expressions = {f"__NR_{name}": f"__NR_{name}" for name in table}
    start = f"#include <stdio.h>\n#define __X32_SYSCALL_BIT {1 << 30}\n"
    told = told_by_c(tmp_path, f"{start}#include <asm/{header}.h>\n", expressions)
    assert told == {name: table[name[5:]] | bit for name in told}
    assert all(table[name] >= NEWER_THAN_HEADERS for name in table if f"__NR_{name}" not in told)


def test_each_number_has_one_name() -> None:
    assert len(set(NUMBERS.values())) == len(NUMBERS)
    assert call_name(SYS.OPENAT2) == "openat2"
    assert call_name(12345) == "system call 12345"
