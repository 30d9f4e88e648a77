# Asks a keeper or a template to do a command: what runtime/asking.py does, for the price of an
# execve(2). An interpreter takes ten times as long to start, and a clone no longer than that.
#
#   ask DOOR KIND PYTHON -I -S -c START COMMAND MARK PACKAGE WORDS…
#
#   DOOR     the path of the socket where it is asked, of at most 107 bytes
#   KIND     what is sent there: "run" or "detached"
#   PACKAGE  the directory of our code; with WORDS and the environment it is the request
#   PYTHON … what does the command if it isn't done there; its MARK, "0", is made "1" if nobody
#            has begun with it, or "2" if somebody has, but ended without an exit status
#
# The file is the whole ELF executable, header and all: it is the same whichever linker is at hand.
# Registers: r12 the stack as the kernel has left it (argc, argv, 0, envp, 0), r13 envp,
# r14 the connection, rbp what is built on the stack.
        .intel_syntax noprefix
        .set    CODE, 0x400000          # where the file is mapped to be executed
        .set    DATA, 0x500000          # and once more, privately, to be written to
        .set    ARGV, 8
        .set    DOOR, ARGV + 8*1
        .set    KIND, ARGV + 8*2
        .set    PYTHON, ARGV + 8*3
        .set    MARK, ARGV + 8*9
        .set    PACKAGE, ARGV + 8*10
        .set    BEFORE_WORDS, 11

        .set    SYS_read, 0
        .set    SYS_write, 1
        .set    SYS_rt_sigaction, 13
        .set    SYS_rt_sigreturn, 15
        .set    SYS_writev, 20
        .set    SYS_socket, 41
        .set    SYS_connect, 42
        .set    SYS_sendmsg, 46
        .set    SYS_shutdown, 48
        .set    SYS_execve, 59
        .set    SYS_umask, 95
        .set    SYS_exit_group, 231
        .set    SYS_openat, 257
        .set    SYS_memfd_create, 319
        .set    AF_UNIX, 1
        .set    SOCK_SEQPACKET_CLOEXEC, 0x80005
        .set    AT_FDCWD, -100
        .set    O_PATH_DIRECTORY_CLOEXEC, 0x290000
        .set    MFD_CLOEXEC, 1
        .set    SOL_SOCKET, 1
        .set    SCM_RIGHTS, 1
        .set    MSG_NOSIGNAL, 0x4000
        .set    SHUT_WR, 1
        .set    SIGINT, 2
        .set    SIG_IGN, 1
        .set    SA_RESTORER_RESTART, 0x14000000
        .set    LONGEST_PATH, 107

        # What is built below rbp.
        .set    HEADER, -8              # umask, number of words
        .set    VECTOR, HEADER - 32     # two struct iovec
        .set    ADDRESS, VECTOR - 112   # struct sockaddr_un
        .set    RIGHTS, ADDRESS - 40    # struct cmsghdr with five descriptors
        .set    MESSAGE, RIGHTS - 56    # struct msghdr
        .set    ACTION, MESSAGE - 32    # struct sigaction, as the kernel has it
        .set    RECEIVED, ACTION - 8
        .set    BUILT, 304

        .text
        # elf(5): Elf64_Ehdr, and three Elf64_Phdr.
header: .ascii  "\177ELF\2\1\1"
        .zero   9
        .short  2, 62                   # ET_EXEC, EM_X86_64
        .long   1
        .quad   CODE + start - header, programs - header, 0
        .long   0
        .short  64, 56, 3, 0, 0, 0
programs:
        .long   1, 5                    # PT_LOAD, readable and executable
        .quad   0, CODE, CODE, end - header, end - header, 0x1000
        .long   1, 6                    # PT_LOAD, readable and writable
        .quad   0, DATA, DATA, end - header, end - header, 0x1000
        .long   0x6474e551, 6           # PT_GNU_STACK, not executable
        .quad   0, 0, 0, 0, 0, 16

start:  mov     r12, rsp
        mov     rbp, rsp
        sub     rsp, BUILT
        mov     rax, [r12]
        lea     r13, [r12 + rax*8 + 16]
        sub     eax, BEFORE_WORDS
        jb      fail
        mov     [rbp + HEADER + 4], eax

        # Arguments and environment lie one behind the other, as execve(2) has put them there.
        lea     rbx, [r13 - 16]         # the last argument
        mov     rax, r13
next:   cmp     qword ptr [rax], 0
        je      found
        mov     rbx, rax
        add     rax, 8
        jmp     next
found:  mov     rdi, [rbx]
        xor     eax, eax
        mov     rcx, -1
        cld
        repne scasb
        mov     rsi, [r12 + PACKAGE]
        sub     rdi, rsi
        mov     [rbp + VECTOR + 16], rsi
        mov     [rbp + VECTOR + 24], rdi
        lea     rax, [rbp + HEADER]
        mov     [rbp + VECTOR], rax
        mov     qword ptr [rbp + VECTOR + 8], 8

        # Connect.
        mov     edi, AF_UNIX
        mov     esi, SOCK_SEQPACKET_CLOEXEC
        xor     edx, edx
        mov     eax, SYS_socket
        syscall
        # If it has the place of stdin, stdout or stderr, that is missing; or it is an error.
        cmp     eax, 2
        jle     python
        mov     r14d, eax
        mov     word ptr [rbp + ADDRESS], AF_UNIX
        lea     rdi, [rbp + ADDRESS + 2]
        mov     rsi, [r12 + DOOR]
        mov     ecx, LONGEST_PATH + 1
copy:   lodsb
        stosb
        test    al, al
        loopnz  copy
        jnz     python
        lea     rsi, [rbp + ADDRESS]
        mov     edx, LONGEST_PATH + 3
        sub     edx, ecx
        mov     edi, r14d
        mov     eax, SYS_connect
        syscall
        test    eax, eax
        js      python

        # Write the request.
        xor     edi, edi
        mov     eax, SYS_umask
        syscall
        mov     [rbp + HEADER], eax
        mov     edi, eax
        mov     eax, SYS_umask
        syscall
        lea     rdi, [rip + name]
        mov     esi, MFD_CLOEXEC
        mov     eax, SYS_memfd_create
        syscall
        test    eax, eax
        js      python
        mov     [rbp + RIGHTS + 16], eax
        mov     edi, eax
        lea     rsi, [rbp + VECTOR]
        mov     edx, 2
        mov     eax, SYS_writev
        syscall
        mov     rcx, [rbp + VECTOR + 24]
        add     rcx, 8
        cmp     rax, rcx
        jne     python
        mov     rdi, AT_FDCWD
        lea     rsi, [rip + here]
        mov     edx, O_PATH_DIRECTORY_CLOEXEC
        mov     eax, SYS_openat
        syscall
        test    eax, eax
        js      python
        mov     [rbp + RIGHTS + 20], eax
        mov     dword ptr [rbp + RIGHTS + 24], 0
        mov     dword ptr [rbp + RIGHTS + 28], 1
        mov     dword ptr [rbp + RIGHTS + 32], 2
        mov     qword ptr [rbp + RIGHTS], 36
        mov     dword ptr [rbp + RIGHTS + 8], SOL_SOCKET
        mov     dword ptr [rbp + RIGHTS + 12], SCM_RIGHTS

        # Who is interrupted tells who works for it, and waits until all is as it was.
        mov     [DATA + connection - header], r14d
        mov     edi, SIGINT
        xor     esi, esi
        lea     rdx, [rbp + ACTION]
        mov     r10d, 8
        mov     eax, SYS_rt_sigaction
        syscall
        cmp     qword ptr [rbp + ACTION], SIG_IGN
        je      send
        lea     rax, [rip + interrupt]
        mov     [rbp + ACTION], rax
        mov     qword ptr [rbp + ACTION + 8], SA_RESTORER_RESTART
        lea     rax, [rip + restore]
        mov     [rbp + ACTION + 16], rax
        mov     qword ptr [rbp + ACTION + 24], 0
        mov     edi, SIGINT
        lea     rsi, [rbp + ACTION]
        xor     edx, edx
        mov     r10d, 8
        mov     eax, SYS_rt_sigaction
        syscall

send:   mov     rdi, [r12 + KIND]
        mov     [rbp + VECTOR], rdi
        xor     eax, eax
        mov     rcx, -1
        repne scasb
        not     rcx
        dec     rcx
        mov     [rbp + VECTOR + 8], rcx
        mov     qword ptr [rbp + MESSAGE], 0
        mov     qword ptr [rbp + MESSAGE + 8], 0
        lea     rax, [rbp + VECTOR]
        mov     [rbp + MESSAGE + 16], rax
        mov     qword ptr [rbp + MESSAGE + 24], 1
        lea     rax, [rbp + RIGHTS]
        mov     [rbp + MESSAGE + 32], rax
        mov     qword ptr [rbp + MESSAGE + 40], 40
        mov     qword ptr [rbp + MESSAGE + 48], 0
        mov     edi, r14d
        lea     rsi, [rbp + MESSAGE]
        mov     edx, MSG_NOSIGNAL
        mov     eax, SYS_sendmsg
        syscall
        test    rax, rax
        js      python

        # What comes is the pid of who has begun, then the exit status.
        call    receive
        jne     python
        inc     byte ptr [rbx]
        call    receive
        jne     python
        mov     edi, [rbp + RECEIVED]
        test    edi, edi
        jz      exit
        cmp     byte ptr [DATA + interrupted - header], 0
        jnz     tell
exit:   mov     eax, SYS_exit_group
        syscall

python: cmp     byte ptr [DATA + interrupted - header], 0
        jnz     tell
        mov     rbx, [r12 + MARK]
        inc     byte ptr [rbx]
        mov     rdi, [r12 + PYTHON]
        lea     rsi, [r12 + PYTHON]
        mov     rdx, r13
        mov     eax, SYS_execve
        syscall
fail:   mov     edi, 127
        jmp     exit

tell:   mov     edi, 2
        lea     rsi, [rip + told]
        mov     edx, told_end - told
        mov     eax, SYS_write
        syscall
        mov     edi, 130
        jmp     exit

        # Receive four bytes; says by the zero flag whether they came.
receive:
        mov     rbx, [r12 + MARK]
        mov     edi, r14d
        lea     rsi, [rbp + RECEIVED]
        mov     edx, 4
        mov     eax, SYS_read
        syscall
        cmp     rax, 4
        ret

        # The handler of SIGINT.
interrupt:
        mov     byte ptr [DATA + interrupted - header], 1
        mov     edi, [DATA + connection - header]
        mov     esi, SHUT_WR
        mov     eax, SYS_shutdown
        syscall
        ret
restore:
        mov     eax, SYS_rt_sigreturn
        syscall

connection:
        .long   0
interrupted:
        .byte   0
here:   .asciz  "."
name:   .asciz  "woodfrog-request"
told:   .ascii  "woodfrog: interrupted\n"
told_end:
end:
