# The loop: runs a program of system calls inside the task that it is mapped into.
#
#   r15  the current record      r14  where to write 1 when the program has ended, or 0
#
# A record is ten 64-bit words:
#   0  number of the call; -1 ends the program; -2 stores 32 bits (word 2) at an address (word 1);
#      -3 loads 32 bits from an address (word 1), as the result
#   1–6  arguments
#   7  bit N set: argument N+1 is the address of the word to use (an earlier record's result);
#      bit 8 set: the result must equal word 8; bit 9 set: the call may fail; bit 10 set: who gets
#      0, the child of a fork, ends at once, unless a tracer that holds it has other plans
#   8  the result expected
#   9  the result
#
# The stack is not touched: rsp stays the task's own, so that a signal handler can run at any point.
# With r14 = 0 the program ends in a breakpoint (for a stub, whose tracer takes it). Otherwise the
# tracer is told through memory and has SPINS rounds to stop the task; if nobody comes, the tracer
# has died, and execution falls through into the code that the tracer has put behind this loop: it
# puts the task's registers back and jumps to where the task was. No call is made on that way, since
# a seccomp filter may forbid it.
        .intel_syntax noprefix
        .set    SPINS, 5000000
        .text
        .globl  _start
_start:
next:
        mov     rax, [r15]
        cmp     rax, -1
        je      done
        mov     rbx, [r15+56]
        mov     rdi, [r15+8]
        test    bl, 1
        jz      1f
        mov     rdi, [rdi]
1:      mov     rsi, [r15+16]
        test    bl, 2
        jz      1f
        mov     rsi, [rsi]
1:      mov     rdx, [r15+24]
        test    bl, 4
        jz      1f
        mov     rdx, [rdx]
1:      mov     r10, [r15+32]
        test    bl, 8
        jz      1f
        mov     r10, [r10]
1:      mov     r8, [r15+40]
        test    bl, 16
        jz      1f
        mov     r8, [r8]
1:      mov     r9, [r15+48]
        test    bl, 32
        jz      1f
        mov     r9, [r9]
1:      cmp     rax, -3
        jb      call
        ja      store
        mov     eax, [rdi]
        jmp     record
store:
        mov     [rdi], esi
        xor     eax, eax
        jmp     record
call:
        syscall
record:
        mov     [r15+72], rax
        test    bh, 4
        jz      1f
        test    rax, rax
        jnz     1f
        mov     eax, 231
        xor     edi, edi
        syscall
        ud2
1:
        test    bh, 1
        jz      1f
        cmp     rax, [r15+64]
        jne     done
        jmp     advance
1:      test    bh, 2
        jnz     advance
        cmp     rax, -4095
        jae     done
advance:
        add     r15, 80
        jmp     next
done:
        test    r14, r14
        jnz     1f
        int3
1:      mov     dword ptr [r14], 1
        mov     ecx, SPINS
1:      pause
        dec     ecx
        jnz     1b
        .balign 16, 0x90
