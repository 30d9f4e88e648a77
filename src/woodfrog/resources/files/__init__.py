"""Open files: one module per kind."""

from woodfrog.resources.files.base import FileRecord
from woodfrog.resources.files.bpf_map import BpfMap
from woodfrog.resources.files.deleted import OpenDeletedFile
from woodfrog.resources.files.epoll import Epoll
from woodfrog.resources.files.eventfd import EventFd
from woodfrog.resources.files.fanotify import Fanotify
from woodfrog.resources.files.fifo import Fifo
from woodfrog.resources.files.inet_datagram import InetDatagramSocket
from woodfrog.resources.files.inotify import Inotify
from woodfrog.resources.files.io_uring import IoUring, PolledIoUring
from woodfrog.resources.files.memfd import MemFd
from woodfrog.resources.files.message_queue import MessageQueueFile
from woodfrog.resources.files.namespace_file import LateNamespaceFile, NamespaceFile
from woodfrog.resources.files.netlink_socket import NetlinkSocket
from woodfrog.resources.files.packet_socket import PacketSocket
from woodfrog.resources.files.pidfd import PidFd
from woodfrog.resources.files.pipe import PipeEnd
from woodfrog.resources.files.proc_file import ProcFile
from woodfrog.resources.files.pty import ControllingTerminal, HungUpTerminal, Pty, PtyMaster
from woodfrog.resources.files.regular import RegularFile
from woodfrog.resources.files.signalfd import SignalFd
from woodfrog.resources.files.stdio import Stdio
from woodfrog.resources.files.tcp_socket import TcpSocket
from woodfrog.resources.files.terminal import Terminal
from woodfrog.resources.files.timerfd import TimerFd
from woodfrog.resources.files.tun_queue import TunQueue
from woodfrog.resources.files.unix_socket import UnixSocketFile

# Asked in this order; the first kind that recognises a file collects it.
KINDS: tuple[type[FileRecord], ...] = (
    MemFd,
    PtyMaster,
    Pty,
    ControllingTerminal,
    HungUpTerminal,
    Terminal,
    Stdio,
    MessageQueueFile,
    ProcFile,
    OpenDeletedFile,
    RegularFile,
    PipeEnd,
    Fifo,
    EventFd,
    Epoll,
    TimerFd,
    SignalFd,
    Inotify,
    Fanotify,
    IoUring,
    PolledIoUring,
    PidFd,
    LateNamespaceFile,
    NamespaceFile,
    UnixSocketFile,
    TcpSocket,
    InetDatagramSocket,
    NetlinkSocket,
    PacketSocket,
    BpfMap,
    TunQueue,
)
