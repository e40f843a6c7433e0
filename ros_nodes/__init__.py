"""ROS 2 nodes: a policy, the guard before the robot, and a simulated robot. Standard messages only.

`convert` and `pilot` load without ROS 2; everything else here needs rclpy.
"""
